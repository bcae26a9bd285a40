"""Fan-out of one process: one subscription a topic, however many connections watch it.

Watchers read from their channel's recent events at positions of their own, so
an event is stored once, a batch is encoded once for all who are at the same
place, and a slow connection holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.outbox import Limits
from semantik_realtime.errors import BackendError
from semantik_realtime.hookspecs import Snapshot, Status, Top
from semantik_realtime.realtime import now_text
from semantik_realtime.web.channel import NOWHERE, Channel, Subscription, Watcher

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
PROBE = "probe:0"
"""Asked for when nothing is watched, to see whether anybody answers."""
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 5.0


class Hub:
    """The channels of a process, kept true.

    Lives on one event loop at a time, from its first use there to `close`.
    Implements `semantik_realtime.hookspecs.Sink`.
    """

    def __init__(
        self,
        backend: Any,
        *,
        tops_seconds: float,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.connections: set[Watcher] = set()
        self.draining = False
        self.degraded_since: str | None = None
        """When the backend was first found to be away."""
        self._backend = backend
        self._tops_seconds = tops_seconds
        self._channels: dict[str, Channel] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def topics(self) -> int:
        """How many topics are watched."""
        return len(self._channels)

    async def open(self) -> None:
        """Connect the reader.

        Raises:
            BackendError: it cannot be reached now; the next call tries again.
        """
        self._begin()
        if self._opened is None or _has_failed(self._opened):
            self._opened = self.spawn(self._backend.open(), "open")
        try:
            await asyncio.shield(self._opened)
        except BackendError:
            self.degrade()
            raise

    async def close(self) -> None:
        """End every task and the reader. Connections must be gone."""
        while tasks := self._tasks - {asyncio.current_task()}:
            # A library may lose a cancellation (wait_for until Python 3.12): again, until heard.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)
        await self._backend.close()
        self._loop = None

    def enter(self, watcher: Watcher) -> None:
        """A connection is there: give it ticks, and tell it how things are."""
        self._begin()
        self.connections.add(watcher)
        if self.draining:
            watcher.drain()
        elif self.degraded_since is not None:
            watcher.degraded(self.degraded_since)

    def leave(self, watcher: Watcher) -> None:
        """A connection is over."""
        self.connections.discard(watcher)

    async def drain(self, timeout_seconds: float = 2.0) -> None:
        """Send every connection away and wait until they are gone, with a deadline."""
        self.draining = True
        for watcher in list(self.connections):
            watcher.drain()
        deadline = time.monotonic() + timeout_seconds
        while self.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def top(self, topic: str) -> Top | None:
        """Where a topic ends, and whose it is."""
        await self.open()
        tops: dict[str, Top] = await self._backend.tops([topic])
        return tops.get(topic)

    async def look(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        """One look at a topic, without watching it."""
        await self.open()
        snapshot: Snapshot = await self._backend.snapshot(topic, after, history)
        return snapshot

    async def status(self) -> Status:
        """How the backend is, asked now."""
        status: Status = await self._backend.status()
        if status.reachable:
            self.restore()
        else:
            self.degrade()
        return status

    def degrade(self) -> None:
        """The backend did not answer: say so, once."""
        if self.degraded_since is None:
            self.degraded_since = now_text()
            logger.warning("hub: degraded")
            for watcher in list(self.connections):
                watcher.degraded(self.degraded_since)

    def restore(self) -> None:
        """The backend answered: say so, once everything that was missed is made up for."""
        if self.degraded_since is not None and not any(
            channel.resyncing for channel in self._channels.values()
        ):
            self.degraded_since = None
            logger.info("hub: restored")
            for watcher in list(self.connections):
                watcher.restored()

    async def acquire(self, topic: str) -> Channel:
        """The channel of ``topic``, subscribed. Give it back with `release`.

        Raises:
            BackendError: it could not be subscribed; nothing is held.
        """
        await self.open()
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = Channel(topic, self.limits)
        channel.users += 1
        if channel.subscribed is None or _has_failed(channel.subscribed):
            channel.subscribed = self.spawn(self._backend.subscribe(topic, self), "subscribe")
        try:
            await asyncio.shield(channel.subscribed)
        except BaseException:
            self.release(channel)
            raise
        return channel

    def release(self, channel: Channel) -> None:
        """Give a channel back; the last one unsubscribes."""
        channel.users -= 1
        if channel.users == 0 and self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]
            if channel.resyncing is not None:
                channel.resyncing.cancel()
            self.spawn(self._unsubscribe(channel.topic), "unsubscribe")

    async def sync(
        self, watcher: Watcher, channel: Channel, asked: Cursor | None, history: int
    ) -> tuple[Subscription, Snapshot]:
        """Join a channel at a cursor.

        The snapshot is what the client gets first; the subscription goes on
        exactly after it. From here on the watcher is woken.

        Raises:
            BackendError: nothing was joined.
        """
        recent = channel.recent
        while True:
            if channel.held is None and recent.epoch and asked and recent.knows(asked):
                events = recent.since(asked.offset)
                assert events is not None
                snapshot = Snapshot(recent.cursor, None, None, {}, events)
                return self._join(watcher, channel, recent.cursor), snapshot
            snapshot = await self._read(channel, asked, history)
            place = snapshot.cursor or NOWHERE
            if channel.resyncing is None:
                if channel.held is not None:
                    channel.begin(place)
                    if not channel.release_held():
                        self._start_resync(channel)
                elif snapshot.reason is None and asked is not None:
                    # Read ahead of the feed; a gap is found below.
                    channel.take(place.epoch, asked.offset, snapshot.events)
                if not recent.knows(place):
                    # Read ahead of the feed, or the topic began, ended or was rewritten.
                    self._start_resync(channel)
            if channel.resyncing is not None:
                await asyncio.shield(channel.resyncing)
            # A place that is not in this history would let its watcher miss a rewriting.
            if recent.knows(place):
                return self._join(watcher, channel, place), snapshot

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task of the hub's: ended with it, its failure noted."""
        task = asyncio.get_running_loop().create_task(work, name=f"semantik-realtime-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    # Sink: called by the backend.

    def events(self, topic: str, epoch: str, prev: int, events: Sequence[Event]) -> None:
        channel = self._channels.get(topic)
        if channel is not None and not channel.take(epoch, prev, events):
            logger.info("hub: gap topic=%s after=%d prev=%d", topic, channel.recent.offset, prev)
            self._start_resync(channel)

    def interrupted(self, topic: str) -> None:
        channel = self._channels.get(topic)
        if channel is not None:
            self._start_resync(channel)

    def gone(self, topic: str) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            return
        for subscription in list(channel.watchers):
            subscription.watcher.gone(subscription)

    # Inside.

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        # A new loop (a test client, a reload): what belonged to the old one is gone with it.
        self._loop, self._opened, self.draining, self.degraded_since = loop, None, False, None
        self._channels.clear()
        self._tasks.clear()
        self.connections.clear()
        self.spawn(self._tick(), "tick")
        self.spawn(self._watch_backend(), "watch")

    async def _unsubscribe(self, topic: str) -> None:
        if topic not in self._channels:
            await self._backend.unsubscribe(topic)

    def _join(self, watcher: Watcher, channel: Channel, cursor: Cursor) -> Subscription:
        subscription = Subscription(watcher, channel, cursor)
        channel.watchers.add(subscription)
        if channel.recent.offset > cursor.offset:
            watcher.wake(subscription)
        return subscription

    async def _read(self, channel: Channel, asked: Cursor | None, history: int) -> Snapshot:
        # Many who ask the same at once (a page just went live) share one reading.
        key = (asked, history)
        reading = channel.reading.get(key)
        if reading is None:
            reading = self.spawn(self._backend.snapshot(channel.topic, asked, history), "snapshot")
            channel.reading[key] = reading
            reading.add_done_callback(lambda _: channel.reading.pop(key, None))
        return await asyncio.shield(reading)

    def _start_resync(self, channel: Channel) -> None:
        if channel.resyncing is None and self._channels.get(channel.topic) is channel:
            if channel.held is None:
                channel.held = channel.hold()
            channel.resyncing = self.spawn(self._resync(channel), "resync")

    async def _resync(self, channel: Channel) -> None:
        """Find out what was missed, for all watchers at once, however long the backend is away."""
        retry_seconds = FIRST_RETRY_SECONDS
        recent = channel.recent
        try:
            while True:
                asked = recent.cursor if recent.epoch else None
                try:
                    snapshot = await self._backend.snapshot(channel.topic, asked, 0)
                except Exception as error:
                    # Whatever it was: a channel that holds its events for ever would be worse.
                    if retry_seconds == FIRST_RETRY_SECONDS:
                        logger.warning("hub: no resync topic=%s error=%r", channel.topic, error)
                    self.degrade()
                    await asyncio.sleep(retry_seconds * random.uniform(0.5, 1))  # noqa: S311
                    retry_seconds = min(retry_seconds * 2, LAST_RETRY_SECONDS)
                    continue
                held, channel.held = channel.held or (), None
                if snapshot.cursor is not None and snapshot.reason is None and asked is not None:
                    if snapshot.events:
                        channel.take(snapshot.cursor.epoch, asked.offset, snapshot.events)
                elif snapshot.cursor is not None or recent.epoch != "":
                    logger.info("hub: resync topic=%s reason=%s", channel.topic, snapshot.reason)
                    channel.restart(snapshot)
                if channel.take_all(held):
                    break
                channel.held = channel.hold()
        finally:
            channel.resyncing = None
        self.restore()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for watcher in list(self.connections):
                watcher.tick(time.monotonic())

    async def _watch_backend(self) -> None:
        """See whether it answers, and look for tails that pub/sub lost without a word."""
        due = time.monotonic() + self._tops_seconds
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self.degraded_since is None and time.monotonic() < due:
                continue
            due = time.monotonic() + self._tops_seconds * random.uniform(0.85, 1.15)  # noqa: S311
            try:
                await self.open()
                await self.check_tops()
            except Exception as error:
                logger.debug("hub: tops failed error=%r", error)
                self.degrade()
            else:
                self.restore()

    async def check_tops(self) -> None:
        """Resync every channel that the backend is ahead of.

        Raises:
            BackendError: nothing was found out.
        """
        known = {topic: channel.recent.cursor for topic, channel in self._channels.items()}
        tops: dict[str, Top] = await self._backend.tops(list(known) or [PROBE])
        for topic, before in known.items():
            channel, top = self._channels.get(topic), tops.get(topic)
            if channel is None or channel.held is not None or channel.recent.cursor != before:
                continue
            if (top.cursor if top else NOWHERE) != before:
                self._start_resync(channel)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, BackendError):
            logger.error("hub: task failed task=%s", task.get_name(), exc_info=error)


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
