"""A cluster whose nodes die and whose slots move, while events flow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from clocked import Arrivals, Load, check
from configuration import make_settings
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.backends.redis.nodes import slot_of
from semantik_realtime.config import Settings, load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.testing.contract import Author, Recorder
from semantik_realtime.testing.redis_nodes import Cluster, working
from semantik_realtime.testing.servers import valkey_program

pytestmark = pytest.mark.cluster
TOPICS = [f"job:{number}" for number in range(1, 7)]
"""Each of the three masters has one of them or more."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with working(Cluster(valkey_program())) as made:
        yield made


@pytest.fixture
def settings(cluster: Cluster) -> Settings:
    return make_settings(cluster.url, backend="redis", timeout_seconds=1.0, tops_seconds=3600.0)


@pytest.fixture
async def web_server(settings: Settings) -> AsyncIterator[InProcessServer]:
    async with serve_realtime(settings) as made:
        yield made


async def flow(client: Arrivals) -> None:
    """Wait until some events of every topic have arrived."""
    await until(lambda: all(len(client.arrivals.get(topic, [])) > 5 for topic in TOPICS), 20)


@pytest.mark.parametrize("how", ["killed", "hangs", "asked"])
async def test_the_topics_of_a_node_move_to_its_replica(
    cluster: Cluster, web_server: InProcessServer, client: Arrivals, load: Load, how: str
) -> None:
    old = cluster.owner(TOPICS[0])
    replica = cluster.replica_of(old.port)
    async with load.flowing():
        await flow(client)
        began = time.monotonic()
        match how:
            case "killed":
                old.kill()
            case "hangs":
                old.pause()
            case "asked":
                cluster.client(replica, "CLUSTER FAILOVER")
        await until(lambda: cluster.owner_by(replica, TOPICS[0]) == replica, 20)
        promoted = time.monotonic() - began
        if how == "hangs":
            old.resume()
        live = await load.live_again(client, began + promoted)
        print(f"{how}: promoted after {promoted:.1f} s, live {live:.1f} s later")
        assert live < 5
        subscribed = web_server.rt.unguarded._subscriptions._subscribers
        await until(lambda: old.port not in {node.port for node in subscribed}, 10)
        await asyncio.sleep(0.3)
    await check(load, client)


async def test_a_slot_that_moves_under_load_loses_and_repeats_nothing(
    cluster: Cluster, web_server: InProcessServer, client: Arrivals, load: Load
) -> None:
    topic = TOPICS[0]
    slot = slot_of(topic)
    source = cluster.owner(topic).port
    target = next(port for port in cluster.ports[:3] if port != source)
    async with load.flowing():
        await flow(client)
        for here, there in ((source, target), (target, source)):
            began = time.monotonic()
            with cluster.moving(slot, here, there):
                # A topic's keys that do not exist look like moved ones: its events wait.
                await asyncio.sleep(0.3)
            moved = time.monotonic()
            live = await load.live_again(client, moved)
            print(f"moved in {moved - began:.2f} s, live {live:.2f} s later")
            assert live < 5
        # Another process begins in the middle.
        with cluster.moving(slot, source, target):
            assert cluster.owner(topic).port == source
        await load.live_again(client, time.monotonic())
    await check(load, client)
    assert not client.ops("degraded")


async def test_a_new_topic_in_a_slot_that_moves_begins_when_it_has_moved(
    cluster: Cluster, settings: Settings
) -> None:
    backend, author, sink = RedisBackend(settings), Author(), Recorder()
    slot = slot_of("job:new")
    source = cluster.owner("job:new").port
    target = next(port for port in cluster.ports[:3] if port != source)
    await backend.open()
    try:
        await backend.subscribe("job:new", sink)
        draft = author.draft("job:new", state={"n": 1})
        with cluster.moving(slot, source, target):
            with pytest.raises(BackendUnavailable):
                await asyncio.to_thread(backend.publish, [draft])
            with pytest.raises(BackendUnavailable, match="is being moved"):
                await backend.snapshot("job:new", None, 10)
            waiting = asyncio.create_task(asyncio.to_thread(backend.publish, [draft]))
            await asyncio.sleep(0.1)
        [receipt] = await waiting
        assert receipt.outcome is Outcome.APPENDED
        await until(lambda: sink.received or sink.interruptions, 10)
        backend.publish([author.draft("job:new", state={"n": 2})])
        await until(lambda: any(event.offset == 2 for event in sink.received), 10)
    finally:
        await backend.close()
        backend.close_writer()


def test_any_node_leads_to_the_cluster(cluster: Cluster) -> None:
    for port in cluster.ports:
        backend, author = RedisBackend(load_settings(url=f"redis://127.0.0.1:{port}")), Author()
        receipts = backend.publish([author.draft(topic) for topic in TOPICS])
        assert {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}
        backend.close_writer()


async def test_an_event_goes_to_the_subscribers_of_its_node_only(
    cluster: Cluster, settings: Settings
) -> None:
    backend = RedisBackend(settings)
    await backend.open()
    try:
        for topic in TOPICS:
            await backend.subscribe(topic, Recorder())
        for port in cluster.ports[:3]:
            own = {t for t in TOPICS if cluster.owner(t).port == port}
            channels = cluster.client(port, "PUBSUB SHARDCHANNELS", f"{settings.prefix}:{{job:*")
            assert {backend._channel(topic).encode() for topic in own} == set(channels)
            assert cluster.client(port, "PUBSUB CHANNELS", "*") == []
    finally:
        await backend.close()
