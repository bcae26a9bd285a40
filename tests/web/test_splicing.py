"""What comes live while a reading is on its way: joined without gap or duplicate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fleet import Here, Native, Publisher, deaf, site_of, until

from semantik_realtime.config import Settings


class Slow:
    """A backend whose readings arrive late: they are made, then held back."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.waiting = 0
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
def settings(settings: Settings) -> Settings:
    """Nobody looks for lost tails here."""
    return settings.model_copy(update={"tops_seconds": 3600.0})


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Here]:
    async with site_of(settings) as here:
        hub = here.rt.web.hub
        hub._backend = Slow(hub._backend)
        yield here


@pytest.fixture
def slow(site: Here) -> Slow:
    return site.rt.web.hub._backend


@pytest.fixture
async def client(site: Here, publisher: Publisher) -> AsyncIterator[Native]:
    await publisher.publish("job:1", 10)
    async with Native(site, "job:1") as made:
        yield made
        assert not made.holes
        assert made.resubscribed == 0


@pytest.mark.every_row
@pytest.mark.parametrize("number", [1, 30])
async def test_what_comes_during_the_first_reading_follows_the_snapshot(
    site: Here, slow: Slow, publisher: Publisher, number: int
) -> None:
    await publisher.publish("job:1", 10)
    slow.gate.clear()
    async with Native(site, "job:1") as client:
        await until(lambda: slow.waiting)
        await publisher.publish("job:1", number, batch=3)
        await until(lambda: site.rt.web.hub._channels["job:1"].held)
        slow.gate.set()
        await client.has("job:1", 10 + number, 3)
    assert client.syncs[0]["offset"] == 10
    assert client.numbers("job:1") == list(range(10, 10 + number))


@pytest.mark.every_row
async def test_what_comes_during_a_resync_follows_it(
    site: Here, slow: Slow, client: Native, publisher: Publisher
) -> None:
    hub = site.rt.web.hub
    await client.synced()
    slow.gate.clear()
    hub.interrupted("job:1")
    await until(lambda: slow.waiting)
    await publisher.publish("job:1", 9, batch=3)
    await until(lambda: hub._channels["job:1"].held == 3)
    slow.gate.set()
    await client.has("job:1", 19, 3)
    assert client.numbers("job:1") == list(range(10, 19))


@pytest.mark.every_row
async def test_a_feed_interrupted_during_the_first_reading_makes_it_read_again(
    site: Here, slow: Slow, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    slow.gate.clear()
    async with Native(site, "job:1") as client:
        await until(lambda: slow.waiting)
        async with deaf(site, "job:1"):
            await publisher.publish("job:1", 5)
        site.rt.web.hub.interrupted("job:1")
        slow.gate.set()
        await client.has("job:1", 15, 3)
    assert client.views["job:1"].states["1"]["progress"]["current"] == 15


@pytest.mark.every_row
async def test_what_a_newcomer_reads_ahead_of_the_feed_reaches_everyone(
    site: Here, client: Native, publisher: Publisher
) -> None:
    await client.synced()
    async with deaf(site, "job:1"):
        await publisher.publish("job:1", 5)
    async with Native(site, "job:1") as newcomer:
        await newcomer.synced()
        assert newcomer.views["job:1"].offset == 15
        await client.has("job:1", 15, 3)
    assert client.numbers("job:1") == list(range(10, 15))


async def test_a_newcomer_whose_reading_is_of_a_lost_epoch_reads_again(
    site: Here, slow: Slow, client: Native, publisher: Publisher
) -> None:
    await client.synced()
    slow.gate.clear()
    async with Native(site, "job:1") as newcomer:
        await until(lambda: slow.waiting)
        backend = site.rt.unguarded
        for key in backend._keys("job:1"):
            await asyncio.to_thread(backend._writer.command, "DEL", key)
        publisher.count["job:1"] = 0
        await publisher.publish("job:1", 3)
        await until(lambda: site.rt.web.hub._channels["job:1"].resyncing)
        slow.gate.set()
        await newcomer.synced()
        await publisher.publish("job:1", 2)
        await newcomer.has("job:1", 5, 3)
        await until(lambda: client.views["job:1"].offset == 5)
    assert newcomer.views["job:1"].states == client.views["job:1"].states
    assert newcomer.views["job:1"].cursor == client.views["job:1"].cursor
    assert newcomer.views["job:1"].states["1"]["progress"]["current"] == 5
    assert client.syncs[1]["reason"] == "epoch"


@pytest.mark.every_row
async def test_many_who_ask_the_same_share_one_reading(
    site: Here, slow: Slow, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    slow.gate.clear()
    clients = [Native(site, "job:1") for _ in range(8)]
    for client in clients:
        await client.open()
    channels = site.rt.web.hub._channels
    await until(lambda: "job:1" in channels and channels["job:1"].reservations == 8)
    assert slow.waiting == 1
    slow.gate.set()
    for client in clients:
        await client.synced()
        assert client.views["job:1"].offset == 10
        await client.close()
