"""Losses of pub/sub are found and filled while the clients stay connected."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Sequence

import pytest
import redis
from clients import CompatClient, NativeClient
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.backends.redis import subscriber as subscriber_module
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.testing.servers import RedisServer


@pytest.fixture
async def web_server(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[InProcessServer]:
    monkeypatch.setattr(subscriber_module, "CANARY_SECONDS", 0.5)
    monkeypatch.setattr(subscriber_module, "LAST_RETRY_SECONDS", 0.5)
    async with serve_realtime(settings) as made:
        yield made


@pytest.fixture
async def client(web_server: InProcessServer, publisher: Publisher) -> AsyncIterator[NativeClient]:
    """A client that follows job:1 from its first event, on one connection to the end."""
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as made:
        await made.wait_synced()
        yield made
        assert made.connections == 1
        assert made.closed is None
        assert made.resubscribed == 0
        assert not made.bad_batches


def publisher_without_pubsub(settings: Settings) -> Publisher:
    """Return a publisher whose events are appended but not delivered by pub/sub."""
    made = Publisher(settings)
    made.rt.unguarded._channel = lambda topic: "no subscriber"
    return made


def kill_pubsub_connections(server: RedisServer) -> int:
    with redis.Redis.from_url(server.url) as admin:
        return int(admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))


@pytest.mark.usefixtures("without_tops")
async def test_a_subscription_that_is_cut_repeatedly_loses_and_repeats_nothing(
    server: RedisServer, client: NativeClient, publisher: Publisher
) -> None:
    killed = 0
    for goal in range(41, 602, 40):
        # Cut while events flow, and never so far behind that a batch is conflated.
        publishing = asyncio.create_task(publisher.publish("job:1", 40, batch=2))
        await client.wait_for_offset("job:1", goal - 20)
        killed += kill_pubsub_connections(server)
        await publishing
        await client.wait_for_offset("job:1", goal)
    assert client.numbers("job:1") == list(range(1, 601))
    assert killed == 15


@pytest.mark.usefixtures("without_tops")
async def test_events_published_during_an_interruption_are_delivered_after_it(
    server: RedisServer, client: NativeClient, publisher: Publisher
) -> None:
    kill_pubsub_connections(server)
    await publisher.publish("job:1", 50, batch=50)
    await client.wait_for_offset("job:1", 51)
    assert client.numbers("job:1") == list(range(1, 51))


async def test_a_lost_tail_is_found_by_tops(
    settings: Settings, client: NativeClient, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 5)
    await client.wait_for_offset("job:1", 6)
    unannounced = publisher_without_pubsub(settings)
    unannounced.count["job:1"] = 6
    await unannounced.publish("job:1", 3)
    unannounced.close()
    await client.wait_for_offset("job:1", 9, 5)
    assert client.numbers("job:1") == list(range(1, 9))


@pytest.mark.usefixtures("without_tops")
async def test_a_gap_is_found_by_the_next_event(
    settings: Settings, client: NativeClient, publisher: Publisher, web_server: InProcessServer
) -> None:
    unannounced = publisher_without_pubsub(settings)
    for _ in range(3):
        unannounced.count["job:1"] = publisher.count["job:1"]
        await unannounced.publish("job:1", 4)
        publisher.count["job:1"] = unannounced.count["job:1"]
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", publisher.count["job:1"], 5)
    unannounced.close()
    assert client.numbers("job:1") == list(range(1, 16))


@pytest.mark.usefixtures("without_tops")
async def test_a_dead_subscription_is_found_by_the_canary(
    web_server: InProcessServer, client: NativeClient, publisher: Publisher
) -> None:
    [subscriber] = web_server.rt.unguarded._subscriptions.subscribers
    await subscriber._connection.send_command("UNSUBSCRIBE", check_health=False)
    await publisher.publish("job:1", 1)
    # The connection is open and no message arrives, which only the canary notices.
    await client.wait_for_offset("job:1", 2, 8)
    await publisher.publish("job:1", 1)
    await client.wait_for_offset("job:1", 3, 2)
    assert client.numbers("job:1") == [1, 2]


@pytest.mark.usefixtures("without_tops")
async def test_unsubscribing_and_subscribing_at_once_leaves_one_subscription(
    web_server: InProcessServer, publisher: Publisher, server: RedisServer
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        for number in range(30):
            syncs = len(client.syncs)
            await client.send({"op": "unsubscribe", "topics": ["job:1"]})
            await client.subscribe("job:1")
            await client.wait_for("sync", syncs + 1)
            await publisher.publish("job:1", 1)
            await client.wait_for_offset("job:1", number + 2, 3)
        with redis.Redis.from_url(server.url) as admin:
            [(_, count)] = admin.pubsub_numsub(web_server.rt.unguarded._channel("job:1"))
        assert count == 1
    assert client.numbers("job:1") == list(range(1, 31))


class RecordingSink:
    """A sink that keeps the newest offset."""

    def __init__(self) -> None:
        self.offset = 0

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        self.offset = events[-1].offset

    def interrupted(self, topic: str) -> None:
        raise AssertionError("nothing was broken")

    def gone(self, topic: str) -> None:
        raise AssertionError("nothing was deleted")


async def test_concurrent_subscribe_and_unsubscribe_calls_end_as_the_last_call_says(
    settings: Settings, publisher: Publisher
) -> None:
    backend, rng = publisher.rt.unguarded, random.Random(5)
    await backend.open()
    try:
        for number in range(1, 101):
            crossing = []
            for _ in range(rng.randint(1, 6)):
                change = backend.subscribe("job:1", RecordingSink()), backend.unsubscribe("job:1")
                crossing += [asyncio.ensure_future(one) for one in change]
                for _ in range(rng.randint(0, 6)):
                    await asyncio.sleep(0)
            sink = RecordingSink()
            async with asyncio.timeout(0.8):
                # As a task it starts after the other calls.
                await asyncio.create_task(backend.subscribe("job:1", sink))
            await asyncio.gather(*crossing, return_exceptions=True)
            await publisher.publish("job:1", 1)
            await until(lambda sink=sink, number=number: sink.offset == number, 2)
            await backend.unsubscribe("job:1")
    finally:
        await backend.close()


@pytest.mark.parametrize("seconds", [0.5, 4.0])
async def test_a_server_that_hangs_for_a_while_loses_no_event(
    server: RedisServer,
    web_server: InProcessServer,
    client: NativeClient,
    publisher: Publisher,
    seconds: float,
) -> None:
    async with CompatClient(web_server.compat_url("1")) as browser:
        await browser.wait_for("step")
        await publisher.publish("job:1", 5)
        server.pause()
        try:
            for _ in range(40):
                publisher.emit("job:1")
            if seconds > 3:
                await client.wait_for("degraded")
            else:
                await asyncio.sleep(seconds)
        finally:
            server.resume()
        await client.wait_for_offset("job:1", 46)
        assert client.numbers("job:1") == list(range(1, 46))
        await until(lambda: len(client.ops("restored")) == len(client.ops("degraded")))
        await browser.wait_for("step", 46)
        assert [message["data"]["i"] for message in browser.of_type("step")] == list(range(46))
        assert browser.closed is None


async def test_clients_follow_a_server_again_after_it_was_killed_and_started(
    server: RedisServer, web_server: InProcessServer, client: NativeClient, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 5)
    await client.wait_for_offset("job:1", 6)
    for _ in range(2):
        server.kill()
        for _ in range(30):
            publisher.emit("job:1")
        await client.wait_for("degraded", len(client.ops("restored")) + 1)
        server.start()
        await client.wait_for_offset("job:1", publisher.count["job:1"])
        await until(lambda: len(client.ops("restored")) == len(client.ops("degraded")))
    await publisher.publish("job:1", 3)
    await client.wait_for_offset("job:1", 69)
    assert client.numbers("job:1") == list(range(1, 69))
    assert {sync["reason"] for sync in client.syncs} == {"new"}
    async with web_server.http_client() as http:
        health = (await http.get("/realtime/health")).json()
    assert (health["ready"], health["degraded_since"]) == (True, None)


async def test_clients_of_a_server_that_lost_its_data_get_a_snapshot_with_the_reason(
    server: RedisServer, web_server: InProcessServer, client: NativeClient, publisher: Publisher
) -> None:
    async with CompatClient(web_server.compat_url("1")) as browser:
        await browser.wait_for("step")
        await publisher.publish("job:1", 5)
        await client.wait_for_offset("job:1", 6)
        server.kill()
        server.wipe()
        server.start()
        first = await client.wait_for("sync", 2)
        assert (first["mode"], first["reason"], first["cursor"]) == ("snapshot", "epoch", None)
        assert client.views["job:1"].states == {}
        await publisher.publish("job:1", 4)
        await client.wait_for_offset("job:1", 4)
        await browser.wait_for("step", 10)
        # The page keeps its state, because no message replaces it.
        assert len(browser.of_type("current_state")) == 1
    assert client.numbers("job:1") == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert client.views["job:1"].states["1"]["progress"]["current"] == 10


async def test_clients_of_a_rewritten_history_get_a_snapshot(
    server: RedisServer, client: NativeClient, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 9)
    await client.wait_for_offset("job:1", 10)
    old = server.directory / "old"
    shutil.copytree(server.directory / "appendonlydir", old)
    await publisher.publish("job:1", 5)
    await client.wait_for_offset("job:1", 15)
    server.kill()
    server.wipe()
    shutil.copytree(old, server.directory / "appendonlydir")
    # The same epoch and offsets with other events, as a promoted replica that lagged has.
    publisher.rt.emitter._queue.producer = "after"
    publisher.count["job:1"] = 1000
    server.start()
    await publisher.publish("job:1", 7)
    await until(lambda: client.syncs[-1]["reason"] in ("ahead", "diverged"), 10, lambda: client)
    await until(lambda: client.views["job:1"].offset == 17, 10, lambda: client)
    assert client.views["job:1"].states["1"]["progress"]["current"] == 1007


@pytest.mark.usefixtures("without_tops")
async def test_unreadable_messages_in_a_channel_do_no_harm(
    server: RedisServer, web_server: InProcessServer, client: NativeClient, publisher: Publisher
) -> None:
    with redis.Redis.from_url(server.url) as admin:
        for poison in (b"", b"\xff", b"one two three\nfour", b"gone\n", b"e 5\n"):
            admin.publish(web_server.rt.unguarded._channel("job:1"), poison)
            await publisher.publish("job:1", 2)
            await client.wait_for_offset("job:1", publisher.count["job:1"])
    assert client.numbers("job:1") == list(range(1, 11))


async def test_clients_that_connect_during_an_outage_are_served_after_it(
    server: RedisServer, web_server: InProcessServer, client: NativeClient, publisher: Publisher
) -> None:
    server.kill()
    await client.wait_for("degraded")
    late = NativeClient(web_server, "job:1")
    await late.open()
    await late.wait_for("degraded")
    browser = CompatClient(web_server.compat_url("1"))
    async with browser:
        # These browsers reconnect only if there is no close frame.
        assert await browser.wait_closed() == 1006
    publisher.emit("job:1")
    server.start()
    await late.wait_synced()
    await late.wait_for_offset("job:1", 2)
    await client.wait_for_offset("job:1", 2)
    assert late.connections == 1
    await late.close()


async def test_without_a_backend_each_server_counts_its_own_connections(
    server: RedisServer, web_server: InProcessServer, client: NativeClient
) -> None:
    server.kill()
    clients = [NativeClient(web_server, "job:1") for _ in range(10)]
    for other in clients:
        await other.open()
        await until(lambda other=other: other.closed or other.ops("welcome"), 5)
    assert [other.closed for other in clients] == [None] * 9 + [4429]
    for other in clients:
        await other.close()
    server.start()
