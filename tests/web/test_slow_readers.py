"""Clients that stop reading: no other client is delayed, and the server buffers little for them."""

from __future__ import annotations

import asyncio

import pytest
from clients import CompatClient, NativeClient, bystander
from publisher import Publisher, one_draft
from waiting import is_blocked, until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.core.limits import SPARE_BYTES
from semantik_realtime.web.hub.channel import Channel

FILLING = "x" * 50_000


def channel_of(web_server: InProcessServer, topic: str) -> Channel:
    return web_server.rt.web.hub._channels[topic]


def pause(client: NativeClient | CompatClient) -> None:
    assert client.socket is not None
    client.socket.transport.pause_reading()


def resume(client: NativeClient | CompatClient) -> None:
    assert client.socket is not None
    client.socket.transport.resume_reading()


async def fill(publisher: Publisher, topic: str, number: int, batch: int = 5) -> None:
    """Publish ``number`` log lines of 50 kB, without state, which conflation may leave out."""
    key = topic.partition(":")[2]
    for start in range(number):
        publisher.rt.emitter.emit(one_draft(topic, "log", key=key, data={"text": FILLING}))
        if start % batch == batch - 1:
            await publisher.flush()
    await publisher.flush()


async def test_a_stalled_client_delays_no_other_client_of_the_same_topic(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with bystander(web_server, publisher), NativeClient(web_server, "job:1") as other:
        stalled = NativeClient(web_server, "job:1", compression=None)
        await stalled.open()
        await stalled.wait_synced()
        await other.wait_synced()
        pause(stalled)
        await fill(publisher, "job:1", 200)
        await publisher.publish("job:1", 100)
        await other.wait_for_offset("job:1", 301)
        assert len(other.applied["job:1"]) + other.conflated == 300
        assert other.views["job:1"].states["1"]["progress"]["current"] == 101
        # The buffer of a stalled client has a bound.
        limit = SPARE_BYTES + 5 * len(FILLING)
        assert channel_of(web_server, "job:1").buffer_bytes <= limit
        resume(stalled)
        await until(lambda: stalled.closed)
        assert stalled.closed == 4413

        # The client catches up from the log.
        await stalled.open()
        await stalled.wait_for_offset("job:1", 301)
        assert stalled.views["job:1"].states == other.views["job:1"].states
        offsets = [event["offset"] for event in stalled.applied["job:1"]]
        assert offsets == sorted(set(offsets))
        await stalled.close()


async def test_a_slow_client_gets_a_conflated_batch_and_the_right_state(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    slow = NativeClient(web_server, "job:1", compression=None)
    await slow.open()
    await slow.wait_synced()
    [connection] = web_server.rt.web.hub.connections
    pause(slow)
    # Until the kernel's buffers are full and the send blocks.
    while not await is_blocked(connection):
        await fill(publisher, "job:1", 5)
    before = channel_of(web_server, "job:1").cursor.offset
    for number in range(300):
        publisher.emit(
            "job:1", key=f"file-{number % 7}", state={"status": f"s{number}", "x": "y" * 400}
        )
    await publisher.end("job:1")
    await until(lambda: channel_of(web_server, "job:1").cursor.offset >= before + 301)
    resume(slow)
    await slow.wait_for_offset("job:1", before + 301)
    assert slow.closed is None
    assert slow.conflated > 200
    assert slow.views["job:1"].conflated == slow.conflated
    await until(lambda: web_server.rt.web.hub.stats.conflated == slow.conflated)
    async with NativeClient(web_server, "job:1") as fresh:
        await fresh.wait_synced()
    assert slow.views["job:1"].states == fresh.views["job:1"].states
    assert slow.applied["job:1"][-1]["terminal"] is True
    assert slow.views["job:1"].cursor == fresh.views["job:1"].cursor
    assert slow.resubscribed == 0
    await slow.close()


async def test_a_client_that_reads_gets_each_of_many_events_that_arrive_at_once(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        # As after an outage: some hundred kilobytes in one batch.
        for number in range(400):
            publisher.emit("job:1", state={"status": "running", "n": number, "x": "y" * 400})
        await publisher.end("job:1")
        await client.wait_for_offset("job:1", 402)
        assert client.conflated == 0
        assert [event["offset"] for event in client.applied["job:1"]] == list(range(2, 403))


@pytest.mark.parametrize("wire", ["native", "compat"])
async def test_a_client_that_reads_nothing_for_too_long_is_evicted(
    settings: Settings, publisher: Publisher, wire: str
) -> None:
    await publisher.publish("job:1", 1)
    async with serve_realtime(settings) as web_server, bystander(web_server, publisher):
        hub = web_server.rt.web.hub
        hub.limits = Limits(stall_seconds=1.0)
        before = set(hub.connections)
        client: NativeClient | CompatClient
        if wire == "native":
            client = NativeClient(web_server, "job:1", compression=None)
        else:
            client = CompatClient(web_server.compat_url("1"), compression=None)
        await client.__aenter__()
        await until(lambda: hub.connections - before)
        [connection] = hub.connections - before
        await until(lambda: connection._subscriptions)
        pause(client)
        while not await is_blocked(connection):
            await fill(publisher, "job:1", 5)
        await until(lambda: connection not in hub.connections, 10)
        assert connection.ended is not None
        assert connection.ended.code == 4413
        assert hub.topics == 1
        resume(client)
        await until(lambda: client.closed)
        # Full buffers have no room for a close frame. After either code the client reconnects.
        assert client.closed in ((1006,) if wire == "compat" else (1006, 4413))
        await client.__aexit__()


async def test_a_slow_compat_browser_is_dropped_without_a_close_frame(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with CompatClient(web_server.compat_url("1"), compression=None) as browser:
        await browser.wait_for("current_state")
        pause(browser)
        await fill(publisher, "job:1", 200)
        resume(browser)
        assert await browser.wait_closed() == 1006


@pytest.mark.parametrize("wire", ["native", "compat"])
async def test_a_client_that_reads_nothing_does_not_outlast_a_drain(
    settings: Settings, publisher: Publisher, wire: str
) -> None:
    await publisher.publish("job:1", 1)
    async with serve_realtime(settings) as web_server:
        hub = web_server.rt.web.hub
        client: NativeClient | CompatClient
        if wire == "native":
            client = NativeClient(web_server, "job:1", compression=None)
        else:
            client = CompatClient(web_server.compat_url("1"), compression=None)
        await client.__aenter__()
        await until(lambda: hub.connections)
        [connection] = hub.connections
        await until(lambda: connection._subscriptions)
        pause(client)
        while not await is_blocked(connection):
            await fill(publisher, "job:1", 5)
        await hub.drain(20)
        assert not hub.connections
        assert connection.ended is not None
        assert connection.ended.code == 1012
        resume(client)
        await until(lambda: client.closed)
        assert client.closed in ((1006,) if wire == "compat" else (1006, 1012))
        await client.__aexit__()


async def test_the_buffer_stays_small_when_no_client_needs_it(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        buffer = channel_of(web_server, "job:1")._splice.buffer
        most = 0
        publishing = asyncio.create_task(publisher.publish("job:1", 2000))
        while not publishing.done():
            most = max(most, len(buffer))
            await asyncio.sleep(0)
        await client.wait_for_offset("job:1", 2001)
        assert 0 < most <= 300
