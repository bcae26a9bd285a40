"""The logs of one test, which all runtimes of its process write to and read."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from semantik_realtime.core.event import (
    Cursor,
    Draft,
    Event,
    Outcome,
    Receipt,
    position_before,
    with_offset,
)
from semantik_realtime.core.holding import Holding
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Backend, Page, Sink, Snapshot, Status, Top, hookimpl
from semantik_realtime.testing.shared_memory_sinks import SharedSinks

FOREIGN_PROCESS = (
    "the memory of a test is in another process: use an eager task, or a worker with the pool "
    "solo or threads"
)
Found = TypeVar("Found")


class SharedMemory:
    """One storage with many clients; each client is a backend, as one process of a fleet has it.

    It also keeps every appended event, whatever the retention, for the test to look at.

    Args:
        store: a backend in memory, which nobody else uses. It is never opened.
    """

    def __init__(self, store: Backend) -> None:
        self.store = store
        # Held around each append, and notified after it. A sink is scheduled under it too, so that
        # it receives the events of a topic in the order of the log.
        self._changed = threading.Condition()
        self._clients: list[MemoryClient] = []
        # The JSON of the events that were appended to each topic, oldest first.
        self._events: dict[str, list[bytes]] = {}
        self._pid = os.getpid()

    def client(self) -> MemoryClient:
        """Return a new backend on this storage."""
        client = MemoryClient(self)
        with self._changed:
            self._clients.append(client)
        return client

    @property
    def topics(self) -> list[str]:
        """The topics that have events; the one whose first event is oldest comes first."""
        with self._changed:
            return list(self._events)

    def events(self, topic: str) -> list[dict[str, Any]]:
        """Return the decoded events of a topic, oldest first, also those of a deleted topic."""
        with self._changed:
            return [json.loads(event) for event in self._events.get(topic, ())]

    def wait(self, look: Callable[[], Found | None], seconds: float) -> Found | None:
        """Return what ``look`` returns as soon as that is not None, or None after ``seconds``.

        It is called at once and after each append, in this thread.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while (found := look()) is None:
                rest = deadline - time.monotonic()
                if rest <= 0:
                    return None
                self._changed.wait(rest)
        return found

    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        """Append drafts, and schedule the sinks of all clients."""
        self.check_process()
        with self._changed:
            receipts = self.store.publish(drafts)
            # By topic and epoch.
            batches: dict[tuple[str, str], list[Event]] = {}
            for draft, receipt in zip(drafts, receipts, strict=True):
                cursor = receipt.cursor
                if receipt.outcome is Outcome.APPENDED and cursor is not None:
                    body = with_offset(draft.body, cursor.offset)
                    event = Event(cursor.offset, cursor.chain, body)
                    batches.setdefault((draft.topic, cursor.epoch), []).append(event)
                    self._events.setdefault(draft.topic, []).append(body)
            for (topic, epoch), events in batches.items():
                for client in self._clients:
                    client.deliver(topic, position_before(epoch, events[0]), events)
            self._changed.notify_all()
        return receipts

    def delete(self, topic: str) -> bool:
        """Delete a topic, and schedule the sinks of all clients."""
        self.check_process()
        with self._changed:
            was_known = self.store.delete(topic)
            for client in self._clients:
                client.deliver_gone(topic)
        return was_known

    def check_process(self) -> None:
        """Raise `BackendUnavailable` in a forked child, whose events the test would never see."""
        if os.getpid() != self._pid:
            raise BackendUnavailable(FOREIGN_PROCESS)


class MemoryClient(SharedSinks):
    """A `semantik_realtime.hookspecs.Backend` on a `SharedMemory`. It works without `open`."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        # For each subscribed topic the sink and its loop; cleared by `close`.
        self._sinks: dict[str, tuple[asyncio.AbstractEventLoop, Sink]] = {}

    # Called by the memory, which holds its lock.

    def deliver(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        """Schedule the topic's sink, if it has one here."""
        if topic in self._sinks:
            loop, sink = self._sinks[topic]
            _schedule(loop, partial(sink.events, topic, prev, events))

    def deliver_gone(self, topic: str) -> None:
        """Schedule that the topic's sink learns of its deletion, if it has one here."""
        if topic in self._sinks:
            loop, sink = self._sinks[topic]
            _schedule(loop, partial(sink.gone, topic))

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        return self._memory.publish(drafts)

    @hookimpl
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        self._memory.check_process()
        return self._memory.store.claim(topic, job, token, owner)

    @hookimpl
    def delete(self, topic: str) -> bool:
        return self._memory.delete(topic)

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        self._memory.check_process()
        return self._memory.store.lease(name, holder, limit, seconds)

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        self._memory.check_process()
        return self._memory.store.release(name, holder)

    @hookimpl
    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        self._memory.check_process()
        return self._memory.store.hold(holder, jobs, ended, seconds)

    @hookimpl
    def overdue(self, seconds: float) -> Sequence[Holding]:
        self._memory.check_process()
        return self._memory.store.overdue(seconds)

    @hookimpl
    def close_writer(self) -> None:
        """Nothing is open for writing."""

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        self._sinks[topic] = (asyncio.get_running_loop(), sink)

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        self._sinks.pop(topic, None)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        return await self._memory.store.snapshot(topic, after, history)

    @hookimpl
    async def page(self, topic: str, after: int, limit: int) -> Page:
        return await self._memory.store.page(topic, after, limit)

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        return await self._memory.store.tops(topics)

    @hookimpl
    async def status(self) -> Status:
        return Status("memory", True, "the memory of this test")

    @hookimpl
    async def open(self) -> None:
        """Nothing to open."""

    @hookimpl
    async def close(self) -> None:
        self._sinks.clear()


def _schedule(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
