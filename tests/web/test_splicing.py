"""Live events during a reading are joined with it without gap or duplicate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from clients import NativeClient
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime, without_delivery

from semantik_realtime.config import Settings

# Nothing but what a test does makes a server look for lost events.
SETTINGS = {"tops_seconds": 3600.0}


class DelayedReads:
    """A backend whose snapshots are read at once, and returned when the gate opens."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.waiting = 0
        """How many snapshots wait at the gate."""
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def snapshot(self, *args: Any) -> Any:
        answer = await self._backend.snapshot(*args)
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        return answer


@pytest.fixture
async def web_server(settings: Settings) -> AsyncIterator[InProcessServer]:
    async with serve_realtime(settings) as made:
        hub = made.rt.web.hub
        hub._backend = DelayedReads(hub._backend)
        yield made


@pytest.fixture
def reads(web_server: InProcessServer) -> DelayedReads:
    return web_server.rt.web.hub._backend


@pytest.fixture
async def client(web_server: InProcessServer, publisher: Publisher) -> AsyncIterator[NativeClient]:
    await publisher.publish("job:1", 10)
    async with NativeClient(web_server, "job:1") as made:
        yield made
        assert not made.bad_batches
        assert made.resubscribed == 0


@pytest.mark.every_row
@pytest.mark.parametrize("number", [1, 30])
async def test_events_published_during_the_first_reading_follow_the_snapshot(
    web_server: InProcessServer, reads: DelayedReads, publisher: Publisher, number: int
) -> None:
    await publisher.publish("job:1", 10)
    reads.gate.clear()
    async with NativeClient(web_server, "job:1") as client:
        await until(lambda: reads.waiting)
        await publisher.publish("job:1", number, batch=3)
        await until(lambda: web_server.rt.web.hub._channels["job:1"].held)
        reads.gate.set()
        await client.wait_for_offset("job:1", 10 + number, 3)
    assert client.syncs[0]["offset"] == 10
    assert client.numbers("job:1") == list(range(10, 10 + number))


@pytest.mark.every_row
async def test_events_published_during_a_resync_follow_it(
    web_server: InProcessServer, reads: DelayedReads, client: NativeClient, publisher: Publisher
) -> None:
    hub = web_server.rt.web.hub
    await client.wait_synced()
    reads.gate.clear()
    hub.interrupted("job:1")
    await until(lambda: reads.waiting)
    await publisher.publish("job:1", 9, batch=3)
    await until(lambda: hub._channels["job:1"].held == 3)
    reads.gate.set()
    await client.wait_for_offset("job:1", 19, 3)
    assert client.numbers("job:1") == list(range(10, 19))


@pytest.mark.every_row
async def test_an_interruption_during_the_first_reading_makes_the_channel_read_again(
    web_server: InProcessServer, reads: DelayedReads, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    reads.gate.clear()
    async with NativeClient(web_server, "job:1") as client:
        await until(lambda: reads.waiting)
        async with without_delivery(web_server, "job:1"):
            await publisher.publish("job:1", 5)
        web_server.rt.web.hub.interrupted("job:1")
        reads.gate.set()
        await client.wait_for_offset("job:1", 15, 3)
    assert client.views["job:1"].states["1"]["progress"]["current"] == 15


@pytest.mark.every_row
async def test_events_that_a_new_client_reads_ahead_of_the_live_ones_reach_every_client(
    web_server: InProcessServer, client: NativeClient, publisher: Publisher
) -> None:
    await client.wait_synced()
    async with without_delivery(web_server, "job:1"):
        await publisher.publish("job:1", 5)
    async with NativeClient(web_server, "job:1") as late:
        await late.wait_synced()
        assert late.views["job:1"].offset == 15
        await client.wait_for_offset("job:1", 15, 3)
    assert client.numbers("job:1") == list(range(10, 15))


async def test_a_new_client_whose_reading_is_of_a_lost_epoch_reads_again(
    web_server: InProcessServer, reads: DelayedReads, client: NativeClient, publisher: Publisher
) -> None:
    await client.wait_synced()
    reads.gate.clear()
    async with NativeClient(web_server, "job:1") as late:
        await until(lambda: reads.waiting)
        backend = web_server.rt.unguarded
        for key in backend._keys("job:1"):
            await asyncio.to_thread(backend._writer.command, key, "DEL", key)
        publisher.count["job:1"] = 0
        await publisher.publish("job:1", 3)
        await until(lambda: web_server.rt.web.hub._channels["job:1"].resyncing)
        reads.gate.set()
        await late.wait_synced()
        await publisher.publish("job:1", 2)
        await late.wait_for_offset("job:1", 5, 3)
        await until(lambda: client.views["job:1"].offset == 5)
    assert late.views["job:1"].states == client.views["job:1"].states
    assert late.views["job:1"].cursor == client.views["job:1"].cursor
    assert late.views["job:1"].states["1"]["progress"]["current"] == 5
    assert client.syncs[1]["reason"] == "epoch"


@pytest.mark.every_row
async def test_equal_subscriptions_share_one_reading(
    web_server: InProcessServer, reads: DelayedReads, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    reads.gate.clear()
    clients = [NativeClient(web_server, "job:1") for _ in range(8)]
    for client in clients:
        await client.open()
    channels = web_server.rt.web.hub._channels
    await until(lambda: "job:1" in channels and channels["job:1"].reservations == 8)
    await until(lambda: reads.waiting)
    assert reads.waiting == 1
    reads.gate.set()
    for client in clients:
        await client.wait_synced()
        assert client.views["job:1"].offset == 10
        await client.close()
