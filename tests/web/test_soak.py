"""Random cuts, batches and interruptions of the backend at the same time, on two servers."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest
from clients import NativeClient
from configuration import make_settings
from publisher import Publisher
from web_servers import ServerProcess, server_processes

from semantik_realtime.core.fold import View
from semantik_realtime.testing.servers import ROWS, Server
from semantik_realtime.testing.tcp_proxy import TcpProxy
from semantik_realtime.web.wires.wire import states_of

SEED = 7
SECONDS = 9.0
TOPICS = ("job:1", "job:2", "user:7")


@pytest.mark.every_backend
async def test_after_random_cuts_and_interruptions_every_client_has_exactly_the_log(
    row: str, server: Server
) -> None:
    rng = random.Random(SEED)
    async with TcpProxy(server.port) as proxy:
        given = {"backend": ROWS[row].backend, "max_connections": 100, "tops_seconds": 1.0}
        settings = make_settings(server.url, **given)
        publisher = Publisher(settings)
        for topic in TOPICS:
            await publisher.publish(topic, 1)
        url = server.url.replace(str(server.port), str(proxy.port))
        async with server_processes(2, settings.model_copy(update={"url": url})) as servers:
            clients = [
                NativeClient(rng.choice(servers), *rng.sample(TOPICS, rng.randint(1, 3)))
                for _ in range(20)
            ]
            deadline = time.monotonic() + SECONDS
            writing = asyncio.to_thread(_write, publisher, random.Random(SEED), deadline)
            async with asyncio.TaskGroup() as group:
                group.create_task(writing)
                breaking = group.create_task(_break(proxy, random.Random(SEED), deadline))
                for number, client in enumerate(clients):
                    group.create_task(_live(client, servers, random.Random(number), deadline))
            await publisher.flush()
            truth = await _truth(publisher)
            for client in clients:
                for topic in client.topics:
                    await client.wait_for_offset(topic, truth[topic].offset)
            for client in clients:
                await client.close()
    assert min(view.offset for view in truth.values()) > 500
    assert sum(client.connections for client in clients) > 60
    assert breaking.result() > 10
    for client in clients:
        assert not client.bad_batches
        for topic, view in client.views.items():
            assert view.offset == truth[topic].offset
            assert view.cursor == truth[topic].cursor
            assert view.states == truth[topic].states
            offsets = [event["offset"] for event in client.applied[topic]]
            assert offsets == sorted(set(offsets))
            assert [event["data"]["i"] + 1 for event in client.applied[topic]] == offsets
            # Without snapshots and conflation there is no gap at all.
            jumps = [sync for sync in client.syncs if sync["topic"] == topic][1:]
            if not client.conflated and all(sync["mode"] == "replay" for sync in jumps):
                assert offsets == list(range(offsets[0], view.offset + 1))
    publisher.close()


def _write(publisher: Publisher, rng: random.Random, deadline: float) -> None:
    """Publish bursts of 1 to 60 events; each waits until the last one is in the log."""
    while time.monotonic() < deadline:
        for _ in range(rng.randint(1, 60)):
            publisher.emit(rng.choice(TOPICS))
        assert publisher.rt.emitter.flush(20)
        time.sleep(rng.uniform(0, 0.05))


async def _break(proxy: TcpProxy, rng: random.Random, deadline: float) -> int:
    """Cut the servers' connections to the backend; return how many were cut."""
    cut = 0
    while time.monotonic() < deadline:
        await asyncio.sleep(rng.uniform(0.3, 1.5))
        cut += proxy.cut()
    return cut


async def _live(
    client: NativeClient, servers: list[ServerProcess], rng: random.Random, deadline: float
) -> None:
    await client.open()
    while time.monotonic() < deadline:
        await asyncio.sleep(rng.uniform(0.05, 3.0))
        await (client.abort() if rng.random() < 0.8 else client.close())
        client.web_server = rng.choice(servers)
        await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0, 2.0))))
        await client.open()


async def _truth(publisher: Publisher) -> dict[str, View]:
    """Read each topic from the backend itself."""
    backend = publisher.rt.unguarded
    await backend.open()
    views = {}
    for topic in TOPICS:
        snapshot = await backend.snapshot(topic, None, 0)
        view = views[topic] = View(topic)
        view.offset, view.cursor = snapshot.cursor.offset, str(snapshot.cursor)
        view.folded = {key: json.loads(state) for key, state in states_of(topic, snapshot).items()}
    await backend.close()
    return views
