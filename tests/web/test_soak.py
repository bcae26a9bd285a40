"""Everything at once for a while: random cuts, batches, a backend that breaks off, two servers."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest
from fleet import Native, Process, Publisher, Way, fleet_of, make_settings

from semantik_realtime.core.fold import View
from semantik_realtime.testing.servers import ROWS, Server
from semantik_realtime.web.wires.wire import states_of

SEED = 7
SECONDS = 9.0
TOPICS = ("job:1", "job:2", "user:7")


@pytest.mark.every_backend
async def test_after_a_random_life_every_client_has_exactly_the_log(
    row: str, server: Server
) -> None:
    rng = random.Random(SEED)
    async with Way(server.port) as way:
        given = {"backend": ROWS[row].backend, "max_connections": 100, "tops_seconds": 1.0}
        settings = make_settings(server.url, **given)
        publisher = Publisher(settings)
        for topic in TOPICS:
            await publisher.publish(topic, 1)
        url = server.url.replace(str(server.port), str(way.port))
        async with fleet_of(2, settings.model_copy(update={"url": url})) as servers:
            clients = [
                Native(rng.choice(servers), *rng.sample(TOPICS, rng.randint(1, 3)))
                for _ in range(20)
            ]
            until_when = time.monotonic() + SECONDS
            writing = asyncio.to_thread(_write, publisher, random.Random(SEED), until_when)
            async with asyncio.TaskGroup() as group:
                group.create_task(writing)
                breaking = group.create_task(_break(way, random.Random(SEED), until_when))
                for number, client in enumerate(clients):
                    group.create_task(_live(client, servers, random.Random(number), until_when))
            await publisher.flush()
            truth = await _truth(publisher)
            for client in clients:
                for topic in client.want:
                    await client.has(topic, truth[topic].offset)
            for client in clients:
                await client.close()
    assert min(view.offset for view in truth.values()) > 500
    assert sum(client.connections for client in clients) > 60
    assert breaking.result() > 10
    for client in clients:
        assert not client.holes
        for topic, view in client.views.items():
            assert view.offset == truth[topic].offset
            assert view.cursor == truth[topic].cursor
            assert view.states == truth[topic].states
            offsets = [event["offset"] for event in client.seen[topic]]
            assert offsets == sorted(set(offsets))
            assert [event["data"]["i"] + 1 for event in client.seen[topic]] == offsets
            # Whole, but for what a snapshot stands in for or a burst left out.
            jumps = [sync for sync in client.syncs if sync["topic"] == topic][1:]
            if not client.conflated and all(sync["mode"] == "replay" for sync in jumps):
                assert offsets == list(range(offsets[0], view.offset + 1))
    publisher.close()


def _write(publisher: Publisher, rng: random.Random, until_when: float) -> None:
    """Bursts of 1 to 60 events, with whatever pause the log needs."""
    while time.monotonic() < until_when:
        for _ in range(rng.randint(1, 60)):
            publisher.emit(rng.choice(TOPICS))
        assert publisher.rt.emitter.flush(20)
        time.sleep(rng.uniform(0, 0.05))


async def _break(way: Way, rng: random.Random, until_when: float) -> int:
    """Cut the servers off from the backend; gives how many connections that ended."""
    cut = 0
    while time.monotonic() < until_when:
        await asyncio.sleep(rng.uniform(0.3, 1.5))
        cut += way.cut()
    return cut


async def _live(
    client: Native, servers: list[Process], rng: random.Random, until_when: float
) -> None:
    await client.open()
    while time.monotonic() < until_when:
        await asyncio.sleep(rng.uniform(0.05, 3.0))
        await (client.cut() if rng.random() < 0.8 else client.close())
        client.site = rng.choice(servers)
        await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0, 2.0))))
        await client.open()


async def _truth(publisher: Publisher) -> dict[str, View]:
    """What the backend itself says."""
    backend = publisher.rt.unguarded
    await backend.open()
    views = {}
    for topic in TOPICS:
        snapshot = await backend.snapshot(topic, None, 0)
        view = views[topic] = View(topic)
        view.offset, view.cursor = snapshot.cursor.offset, str(snapshot.cursor)
        view.folded = {key: json.loads(state) for key, state in states_of(snapshot).items()}
    await backend.close()
    return views
