"""Events that say when they were published, and what a client received of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from clients import NativeClient
from publisher import Publisher
from waiting import until

from semantik_realtime.hookspecs import Snapshot

PAUSE_SECONDS = 0.02
"""Between two events of each topic."""


class Arrivals(NativeClient):
    """A client that notes when each event arrived."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.arrivals: dict[str, list[tuple[float, int]]] = {}
        """When an event arrived, on the monotonic clock, and its number, by topic."""

    def _apply(self, topic: str, batch: dict[str, Any], gaps: list[str]) -> None:
        before = len(self.applied[topic])
        super()._apply(topic, batch, gaps)
        now, found = time.monotonic(), self.arrivals.setdefault(topic, [])
        found += [(now, event["data"]["i"]) for event in self.applied[topic][before:]]


class Load:
    """Publishes events to some topics, from `flowing` to the end of its block.

    Args:
        publisher: emits the events.
        topics: to which every event goes.
    """

    def __init__(self, publisher: Publisher, topics: Sequence[str]) -> None:
        self.publisher = publisher
        self.topics = topics
        self.emitted_at: list[float] = []
        """When the events with a number were emitted, on the monotonic clock."""

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Emit in the block; after it, wait until all events are in the log."""
        task = asyncio.create_task(self._emit())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        await self.publisher.flush(40)

    async def _emit(self) -> None:
        while True:
            self.emitted_at.append(time.monotonic())
            for topic in self.topics:
                self.publisher.emit(topic)
            await asyncio.sleep(PAUSE_SECONDS)

    async def live_again(self, client: Arrivals, after: float) -> float:
        """Wait until an event of every topic that was emitted after ``after`` has arrived.

        Return how many seconds after ``after`` the last of them did.
        """

        def first(topic: str) -> float | None:
            found = client.arrivals.get(topic, [])
            return next((at for at, i in found if self.emitted_at[i] > after), None)

        def times() -> list[float | None]:
            return [first(topic) for topic in self.topics]

        await until(lambda: all(times()), 30, lambda: client)
        return max(at for at in times() if at is not None) - after


async def check(load: Load, client: Arrivals) -> None:
    """Check a client against the logs: the same end, nothing doubled or out of order.

    An event that the client did not receive is missing only where a snapshot says that the log
    was rewritten.
    """
    backend = load.publisher.rt.backend
    await backend.open()
    try:
        for topic in load.topics:
            log = await backend.snapshot(topic, None, 1000)
            async with asyncio.timeout(15):
                while client.views[topic].cursor != str(log.cursor):
                    await asyncio.sleep(0.2)
                    log = await backend.snapshot(topic, None, 1000)
            numbers = [i for _, i in client.arrivals[topic]]
            assert numbers == sorted(set(numbers)), topic
            last = len(load.emitted_at) - 1
            assert client.views[topic].states[topic.partition(":")[2]]["progress"]["current"] == (
                last + 1
            )
            stored = stored_numbers(log)
            assert stored == sorted(set(stored)), topic
            snapshots = [
                s for s in client.syncs if s["topic"] == topic and s.get("reason") != "new"
            ]
            if not any(s["mode"] == "snapshot" for s in snapshots):
                whole = range(numbers[0], len(load.emitted_at))
                assert [i for i in whole if i not in set(numbers)] == [], (client, client.conflated)
                assert stored[-len(numbers) :] == numbers[-len(stored) :]
    finally:
        await backend.close()
    if all(sync.get("reason") in ("new", None) for sync in client.syncs):
        # After a rewritten log a client leaves out what it has already passed on.
        assert not client.bad_batches
    assert client.connections == 1


def stored_numbers(log: Snapshot) -> list[int]:
    """Return ``data.i`` of the events in a log."""
    return [json.loads(event.json)["data"]["i"] for event in log.events]
