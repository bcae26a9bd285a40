"""A socket that stops reading: nobody else notices, and the server keeps little for it."""

from __future__ import annotations

import asyncio

import pytest
from fleet import Compat, Here, Native, Publisher, bystander, one_draft, site_of, until

from semantik_realtime.config import Settings
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.web.hub.channel import Channel

FILLING = "x" * 50_000


def channel_of(site: Here, topic: str) -> Channel:
    return site.rt.web.hub._channels[topic]


def pause(client: Native | Compat) -> None:
    assert client.socket is not None
    client.socket.transport.pause_reading()


def resume(client: Native | Compat) -> None:
    assert client.socket is not None
    client.socket.transport.resume_reading()


async def fill(publisher: Publisher, topic: str, number: int, batch: int = 5) -> None:
    """Log lines of 50 kB: they have no state, so conflation may leave them out."""
    key = topic.partition(":")[2]
    for start in range(number):
        publisher.rt.emitter.emit(one_draft(topic, "log", key=key, data={"text": FILLING}))
        if start % batch == batch - 1:
            await publisher.flush()
    await publisher.flush()


async def test_while_one_stalls_the_others_on_the_same_topic_get_everything(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with bystander(site, publisher), Native(site, "job:1") as other:
        stalled = Native(site, "job:1", compression=None)
        await stalled.open()
        await stalled.synced()
        await other.synced()
        pause(stalled)
        await fill(publisher, "job:1", 200)
        await publisher.publish("job:1", 100)
        await other.has("job:1", 301)
        assert len(other.seen["job:1"]) + other.conflated == 300
        assert other.views["job:1"].states["1"]["progress"]["current"] == 101
        # What is kept for the one who stalls has a bound.
        limit = Limits().evict_above_bytes + 5 * len(FILLING)
        assert channel_of(site, "job:1").buffer_bytes <= limit
        resume(stalled)
        await until(lambda: stalled.closed)
        assert stalled.closed == 4413

        # The log has the rest.
        await stalled.open()
        await stalled.has("job:1", 301)
        assert stalled.views["job:1"].states == other.views["job:1"].states
        offsets = [event["offset"] for event in stalled.seen["job:1"]]
        assert offsets == sorted(set(offsets))
        await stalled.close()


async def test_a_slow_one_gets_a_conflated_batch_and_the_right_state(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    slow = Native(site, "job:1", compression=None)
    await slow.open()
    await slow.synced()
    [connection] = site.rt.web.hub.connections
    pause(slow)
    # Until the kernel takes no more.
    while connection._sending_since is None:
        await fill(publisher, "job:1", 5)
    before = channel_of(site, "job:1").cursor.offset
    for number in range(300):
        publisher.emit(
            "job:1", key=f"file-{number % 7}", state={"status": f"s{number}", "x": "y" * 400}
        )
    await publisher.end("job:1")
    await until(lambda: channel_of(site, "job:1").cursor.offset >= before + 301)
    resume(slow)
    await slow.has("job:1", before + 301)
    assert slow.closed is None
    assert slow.conflated > 200
    async with Native(site, "job:1") as fresh:
        await fresh.synced()
    assert slow.views["job:1"].states == fresh.views["job:1"].states
    assert slow.seen["job:1"][-1]["terminal"] is True
    assert slow.views["job:1"].cursor == fresh.views["job:1"].cursor
    assert slow.resubscribed == 0
    await slow.close()


@pytest.mark.parametrize("wire", ["native", "compat"])
async def test_who_takes_nothing_for_too_long_is_evicted(
    settings: Settings, publisher: Publisher, wire: str
) -> None:
    await publisher.publish("job:1", 1)
    async with site_of(settings) as site, bystander(site, publisher):
        hub = site.rt.web.hub
        hub.limits = Limits(stall_seconds=1.0)
        here = set(hub.connections)
        client: Native | Compat
        if wire == "native":
            client = Native(site, "job:1", compression=None)
        else:
            client = Compat(site.compat("1"), compression=None)
        await client.__aenter__()
        await until(lambda: hub.connections - here)
        [connection] = hub.connections - here
        await until(lambda: connection._subscriptions)
        pause(client)
        while connection._sending_since is None:
            await fill(publisher, "job:1", 5)
        await until(lambda: connection not in hub.connections, 10)
        assert connection.ended is not None
        assert connection.ended.code == 4413
        assert hub.topics == 1
        resume(client)
        await until(lambda: client.closed)
        # If it is full to the brim no close frame can be sent; both mean: come back.
        assert client.closed in ((1006,) if wire == "compat" else (1006, 4413))
        await client.__aexit__()


async def test_a_slow_compat_browser_is_dropped_without_a_close_frame(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with Compat(site.compat("1"), compression=None) as browser:
        await browser.wait_for("current_state")
        pause(browser)
        await fill(publisher, "job:1", 200)
        resume(browser)
        assert await browser.end() == 1006


async def test_events_kept_for_nobody_are_few(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        recent = channel_of(site, "job:1")._splice.buffer
        most = 0
        publishing = asyncio.create_task(publisher.publish("job:1", 2000))
        while not publishing.done():
            most = max(most, len(recent))
            await asyncio.sleep(0)
        await client.has("job:1", 2001)
        assert 0 < most <= 300
