"""Pub/sub forgets without a word; watchers must not. None of them reconnects here."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Sequence

import pytest
import redis
from fleet import Compat, Here, Native, Publisher, site_of, until

from semantik_realtime.backends.redis import subscriber as feed_module
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Event
from semantik_realtime.testing.servers import RedisServer


@pytest.fixture
async def site(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Here]:
    monkeypatch.setattr(feed_module, "CANARY_SECONDS", 0.5)
    monkeypatch.setattr(feed_module, "LAST_RETRY_SECONDS", 0.5)
    async with site_of(settings) as here:
        yield here


@pytest.fixture
async def client(site: Here, publisher: Publisher) -> AsyncIterator[Native]:
    """Somebody who watches job:1 from its first event, on one connection to the end."""
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as made:
        await made.synced()
        yield made
        assert made.connections == 1
        assert made.closed is None
        assert made.resubscribed == 0
        assert not made.holes


def mute(settings: Settings) -> Publisher:
    """One whose events are appended, but told to nobody."""
    made = Publisher(settings)
    made.rt.unguarded._channel = lambda topic: "nobody"
    return made


def kill_feeds(server: RedisServer) -> int:
    with redis.Redis.from_url(server.url) as admin:
        return int(admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))


@pytest.mark.usefixtures("without_tops")
async def test_a_feed_that_is_cut_again_and_again_loses_and_doubles_nothing(
    server: RedisServer, client: Native, publisher: Publisher
) -> None:
    killed = 0
    for goal in range(41, 602, 40):
        # In the middle of a stream, and never so much behind that a batch is conflated.
        publishing = asyncio.create_task(publisher.publish("job:1", 40, batch=2))
        await client.has("job:1", goal - 20)
        killed += kill_feeds(server)
        await publishing
        await client.has("job:1", goal)
    assert client.numbers("job:1") == list(range(1, 601))
    assert killed == 15


@pytest.mark.usefixtures("without_tops")
async def test_what_was_said_while_the_feed_was_down_is_made_up_for(
    server: RedisServer, client: Native, publisher: Publisher
) -> None:
    kill_feeds(server)
    await publisher.publish("job:1", 50, batch=50)
    await client.has("job:1", 51)
    assert client.numbers("job:1") == list(range(1, 51))


async def test_a_lost_tail_is_found_by_tops(
    settings: Settings, client: Native, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 5)
    await client.has("job:1", 6)
    silent = mute(settings)
    silent.count["job:1"] = 6
    await silent.publish("job:1", 3)
    silent.close()
    await client.has("job:1", 9, 5)
    assert client.numbers("job:1") == list(range(1, 9))


@pytest.mark.usefixtures("without_tops")
async def test_a_hole_is_found_by_the_next_event(
    settings: Settings, client: Native, publisher: Publisher, site: Here
) -> None:
    silent = mute(settings)
    for _ in range(3):
        silent.count["job:1"] = publisher.count["job:1"]
        await silent.publish("job:1", 4)
        publisher.count["job:1"] = silent.count["job:1"]
        await publisher.publish("job:1", 1)
        await client.has("job:1", publisher.count["job:1"], 5)
    silent.close()
    assert client.numbers("job:1") == list(range(1, 16))


@pytest.mark.usefixtures("without_tops")
async def test_a_dead_subscription_is_found_by_the_canary(
    site: Here, client: Native, publisher: Publisher
) -> None:
    feed = site.rt.unguarded._subscriber
    await feed._connection.send_command("UNSUBSCRIBE", check_health=False)
    await publisher.publish("job:1", 1)
    # Nothing comes, and nothing is broken: only the canary can tell.
    await client.has("job:1", 2, 8)
    await publisher.publish("job:1", 1)
    await client.has("job:1", 3, 2)
    assert client.numbers("job:1") == [1, 2]


@pytest.mark.usefixtures("without_tops")
async def test_a_subscription_left_and_taken_up_again_at_once_is_one(
    site: Here, publisher: Publisher, server: RedisServer
) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        for number in range(30):
            syncs = len(client.syncs)
            await client.send({"op": "unsubscribe", "topics": ["job:1"]})
            await client.subscribe("job:1")
            await client.wait_for("sync", syncs + 1)
            await publisher.publish("job:1", 1)
            await client.has("job:1", number + 2, 3)
        with redis.Redis.from_url(server.url) as admin:
            [(_, count)] = admin.pubsub_numsub(site.rt.unguarded._channel("job:1"))
        assert count == 1
    assert client.numbers("job:1") == list(range(1, 31))


class Ears:
    """A sink that counts."""

    def __init__(self) -> None:
        self.offset = 0

    def events(self, topic: str, epoch: str, prev: int, events: Sequence[Event]) -> None:
        self.offset = events[-1].offset

    def interrupted(self, topic: str) -> None:
        raise AssertionError("nothing was broken")

    def gone(self, topic: str) -> None:
        raise AssertionError("nothing was deleted")


async def test_subscriptions_that_cross_on_the_way_end_as_the_last_one_says(
    settings: Settings, publisher: Publisher
) -> None:
    backend, rng = publisher.rt.unguarded, random.Random(5)
    await backend.open()
    try:
        for number in range(1, 101):
            crossing = []
            for _ in range(rng.randint(1, 6)):
                change = backend.subscribe("job:1", Ears()), backend.unsubscribe("job:1")
                crossing += [asyncio.ensure_future(one) for one in change]
                for _ in range(rng.randint(0, 6)):
                    await asyncio.sleep(0)
            ears = Ears()
            async with asyncio.timeout(0.8):
                # A task like the others: it begins after them.
                await asyncio.create_task(backend.subscribe("job:1", ears))
            await asyncio.gather(*crossing, return_exceptions=True)
            await publisher.publish("job:1", 1)
            await until(lambda ears=ears, number=number: ears.offset == number, 2)
            await backend.unsubscribe("job:1")
    finally:
        await backend.close()


@pytest.mark.parametrize("seconds", [0.5, 4.0])
async def test_a_server_that_hangs_for_a_while_costs_nothing_but_time(
    server: RedisServer, site: Here, client: Native, publisher: Publisher, seconds: float
) -> None:
    async with Compat(site.compat("1")) as browser:
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
        await client.has("job:1", 46)
        assert client.numbers("job:1") == list(range(1, 46))
        await until(lambda: len(client.ops("restored")) == len(client.ops("degraded")))
        await browser.wait_for("step", 46)
        assert [message["data"]["i"] for message in browser.of("step")] == list(range(46))
        assert browser.closed is None


async def test_a_server_killed_and_started_again_is_followed_again(
    server: RedisServer, site: Here, client: Native, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 5)
    await client.has("job:1", 6)
    for _ in range(2):
        server.kill()
        for _ in range(30):
            publisher.emit("job:1")
        await client.wait_for("degraded", len(client.ops("restored")) + 1)
        server.start()
        await client.has("job:1", publisher.count["job:1"])
        await until(lambda: len(client.ops("restored")) == len(client.ops("degraded")))
    await publisher.publish("job:1", 3)
    await client.has("job:1", 69)
    assert client.numbers("job:1") == list(range(1, 69))
    assert {sync["reason"] for sync in client.syncs} == {"new"}
    async with site.client() as http:
        health = (await http.get("/realtime/health")).json()
    assert (health["ready"], health["degraded_since"]) == (True, None)


async def test_a_server_that_forgot_everything_begins_anew_with_a_reason(
    server: RedisServer, site: Here, client: Native, publisher: Publisher
) -> None:
    async with Compat(site.compat("1")) as browser:
        await browser.wait_for("step")
        await publisher.publish("job:1", 5)
        await client.has("job:1", 6)
        server.kill()
        server.wipe()
        server.start()
        first = await client.wait_for("sync", 2)
        assert (first["mode"], first["reason"], first["cursor"]) == ("snapshot", "epoch", None)
        assert client.views["job:1"].states == {}
        await publisher.publish("job:1", 4)
        await client.has("job:1", 4)
        await browser.wait_for("step", 10)
        # What the page had been told stays: nobody says that the job is not there.
        assert len(browser.of("current_state")) == 1
    assert client.numbers("job:1") == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert client.views["job:1"].states["1"]["progress"]["current"] == 10


async def test_a_history_that_was_rewritten_is_told_as_a_snapshot(
    server: RedisServer, client: Native, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 9)
    await client.has("job:1", 10)
    old = server.directory / "old"
    shutil.copytree(server.directory / "appendonlydir", old)
    await publisher.publish("job:1", 5)
    await client.has("job:1", 15)
    server.kill()
    server.wipe()
    shutil.copytree(old, server.directory / "appendonlydir")
    # The same epoch and the same offsets, but other events: what a replica that lagged hands out.
    publisher.rt.emitter._queue.producer = "after"
    publisher.count["job:1"] = 1000
    server.start()
    await publisher.publish("job:1", 7)
    await until(lambda: client.syncs[-1]["reason"] in ("ahead", "diverged"), 10, lambda: client)
    await until(lambda: client.views["job:1"].offset == 17, 10, lambda: client)
    assert client.views["job:1"].states["1"]["progress"]["current"] == 1007


@pytest.mark.usefixtures("without_tops")
async def test_a_poisoned_channel_is_survived(
    server: RedisServer, site: Here, client: Native, publisher: Publisher
) -> None:
    with redis.Redis.from_url(server.url) as admin:
        for poison in (b"", b"\xff", b"one two three\nfour", b"gone\n", b"e 5\n"):
            admin.publish(site.rt.unguarded._channel("job:1"), poison)
            await publisher.publish("job:1", 2)
            await client.has("job:1", publisher.count["job:1"])
    assert client.numbers("job:1") == list(range(1, 11))


async def test_who_comes_while_the_backend_is_away_is_served_when_it_is_back(
    server: RedisServer, site: Here, client: Native, publisher: Publisher
) -> None:
    server.kill()
    await client.wait_for("degraded")
    late = Native(site, "job:1")
    await late.open()
    await late.wait_for("degraded")
    browser = Compat(site.compat("1"))
    async with browser:
        # The old browsers come back by themselves, but only without a close frame.
        assert await browser.end() == 1006
    publisher.emit("job:1")
    server.start()
    await late.synced()
    await late.has("job:1", 2)
    await client.has("job:1", 2)
    assert late.connections == 1
    await late.close()


async def test_without_a_backend_connections_are_counted_by_each_server(
    server: RedisServer, site: Here, client: Native
) -> None:
    server.kill()
    clients = [Native(site, "job:1") for _ in range(10)]
    for other in clients:
        await other.open()
        await until(lambda other=other: other.closed or other.ops("welcome"), 5)
    assert [other.closed for other in clients] == [None] * 9 + [4429]
    for other in clients:
        await other.close()
    server.start()
