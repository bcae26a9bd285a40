"""Fan-out of one process: one subscription a topic, however many connections watch it.

Watchers read from their channel's recent events at positions of their own, so
an event is stored once, a batch is encoded once for all who are at the same
place, and a slow connection holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Snapshot, Status, Top
from semantik_realtime.runtime import now_text
from semantik_realtime.web.hub.channel import NOWHERE, Channel, Subscription, Watcher
from semantik_realtime.web.hub.stats import HubStats
from semantik_realtime.web.outage import DegradedMode, Recall

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 1.0
PROBE_SECONDS = 0.5
"""Between two looks while the backend is away."""
RESYNC_SECONDS = 5.0
MAX_RECALLS = 8
"""Topics that the host is asked for at the same time."""

Answer = TypeVar("Answer")


class Hub:
    """The channels of a process, kept true.

    Lives on one event loop at a time, from its first use there to `close`.
    Implements `semantik_realtime.hookspecs.Sink`.
    """

    def __init__(
        self,
        backend: GuardedBackend,
        *,
        flush: Callable[[], Awaitable[bool]],
        recall: Recall,
        tops_seconds: float,
        recall_seconds: float,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.connections: set[Watcher] = set()
        self.draining = False
        self.stats = HubStats()
        self.on_tick: Callable[[], object] | None = None
        self.degraded_since: str | None = None
        """When the backend was first found to be away."""
        self.meanwhile = DegradedMode(
            backend, self.recall, recall_seconds, self.connections, self.spawn
        )
        backend.sheltered = self._sheltered
        self._backend = backend
        self._flush = flush
        self._recall = recall
        self._recalling: dict[str, asyncio.Task[Mapping[str, bytes] | None]] = {}
        self._tops_seconds = tops_seconds
        self._degraded_at = 0.0
        self._back = asyncio.Event()
        """Not set from the beginning of an outage until the backend answers again."""
        self._slots = asyncio.Semaphore(MAX_RECALLS)
        self._channels: dict[str, Channel] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def topics(self) -> int:
        """How many topics are watched."""
        return len(self._channels)

    @property
    def degraded_seconds(self) -> float:
        """How long the backend was away since the process began; the running outage counts."""
        seconds = self.stats.degraded_seconds
        if self.degraded_since is not None:
            seconds += time.monotonic() - self._degraded_at
        return seconds

    def loop_elsewhere(self) -> asyncio.AbstractEventLoop | None:
        """The running loop that it lives on, unless that is the caller's: then ask it there."""
        loop = self._loop
        if loop is None or loop is asyncio.get_running_loop() or not loop.is_running():
            return None
        return loop

    async def open(self) -> None:
        """Connect the reader.

        Raises:
            BackendError: it cannot be reached now. While that is known, at once.
        """
        self._begin()
        if self.degraded_since is not None and not self._is_open():
            raise BackendUnavailable("the backend is away")
        await self._connect()

    async def open_at_start(self, tries: int) -> None:
        """Connect the reader, with pauses of 1, 2, 4… s between ``tries``.

        Raises:
            BackendError: it cannot be reached. From here on the hub keeps trying.
        """
        self._begin()
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(tries),
            wait=wait_exponential() + wait_random(0, 0.5),
            retry=retry_if_exception_type(BackendError),
            reraise=True,
        ):
            with attempt:
                await self._connect()

    async def close(self) -> None:
        """End every task and the reader. Connections must be gone."""
        while tasks := self._tasks - {asyncio.current_task()}:
            # A library may lose a cancellation (wait_for until Python 3.12): again, until heard.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)
        self.meanwhile.end()
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
        """Where a topic ends, and whose it is.

        Raises:
            BackendError: it cannot be asked now.
        """
        await self.open()
        tops = await self._asked(self._backend.tops([topic]))
        return tops.get(topic)

    async def look(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        """One look at a topic, without watching it.

        Raises:
            BackendError: it cannot be asked now.
        """
        await self.open()
        return await self._asked(self._backend.snapshot(topic, after, history))

    async def recall(self, topic: str) -> Mapping[str, bytes] | None:
        """The host's own record of a topic that the backend does not know.

        Raises:
            BackendUnavailable: the host cannot be asked now.
        """
        # Many who come at once (a page just went live) share one look, and a broker that forgot
        # everything must not bring them all upon the host's database.
        recalling = self._recalling.get(topic)
        if recalling is None:

            async def look() -> Mapping[str, bytes] | None:
                async with self._slots:
                    return await self._recall(topic)

            recalling = self._recalling[topic] = self.spawn(look(), "recall")
            recalling.add_done_callback(lambda _: self._recalling.pop(topic, None))
        return await asyncio.shield(recalling)

    async def status(self) -> Status:
        """How the backend is, asked now; while it is away nobody waits for an answer."""
        try:
            await self.open()
        except BackendError as error:
            return Status("", False, str(error))
        if self._backend.is_away:
            return Status("", False, "the backend is away")
        status = await self._backend.status()
        if not status.reachable:
            self.degrade(status.server)
        return status

    def degrade(self, error: object) -> None:
        """The backend did not answer: say so, once, and show what there is without it."""
        self._back.clear()
        if self.degraded_since is not None:
            return
        self._degraded_at = time.monotonic()
        self.degraded_since = now_text()
        logger.warning("hub: degraded, the backend is away error=%s", error)
        for watcher in list(self.connections):
            watcher.degraded(self.degraded_since)
        self.meanwhile.begin()

    async def wait_for_backend(self, seconds: float) -> None:
        """Wait ``seconds``, and if the backend is away until it is back."""
        await asyncio.sleep(seconds * random.uniform(0.5, 1))  # noqa: S311
        await self._back.wait()

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
            await self._asked(asyncio.shield(channel.subscribed))
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
                        self._start_resync(channel, "gap")
                elif snapshot.reason is None and asked is not None:
                    # Read ahead of the feed; a gap is found below.
                    channel.take(place.epoch, asked.offset, snapshot.events)
                if not recent.knows(place):
                    # Read ahead of the feed, or the topic began, ended or was rewritten.
                    self._start_resync(channel, "ahead")
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
        self.stats.received += len(events)
        channel = self._channels.get(topic)
        if channel is not None and not channel.take(epoch, prev, events):
            logger.info("hub: gap topic=%s after=%d prev=%d", topic, channel.recent.offset, prev)
            self._start_resync(channel, "gap")

    def interrupted(self, topic: str) -> None:
        channel = self._channels.get(topic)
        if channel is not None:
            self._start_resync(channel, "interrupted")

    def gone(self, topic: str) -> None:
        channel = self._channels.get(topic)
        if channel is None:
            return
        for subscription in list(channel.watchers):
            subscription.watcher.gone(subscription)

    # Inside.

    async def _connect(self) -> None:
        if self._opened is None or _has_failed(self._opened):
            self._opened = self.spawn(self._backend.open(), "open")
        await self._asked(asyncio.shield(self._opened))

    def _is_open(self) -> bool:
        return self._opened is not None and self._opened.done() and not _has_failed(self._opened)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        # A new loop (a test client, a reload): what belonged to the old one is gone with it.
        self._loop, self._opened, self.draining, self.degraded_since = loop, None, False, None
        self._back = asyncio.Event()
        self._back.set()
        self._slots = asyncio.Semaphore(MAX_RECALLS)
        self._channels.clear()
        self._recalling.clear()
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
        return await self._asked(asyncio.shield(reading))

    async def _asked(self, answer: Awaitable[Answer]) -> Answer:
        try:
            return await answer
        except BackendError as error:
            self.degrade(error)
            raise

    def _start_resync(self, channel: Channel, reason: str) -> None:
        if channel.resyncing is None and self._channels.get(channel.topic) is channel:
            self.stats.resyncs[reason] += 1
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
                    if not isinstance(error, BackendError):
                        logger.exception("hub: no resync topic=%s", channel.topic)
                    self.degrade(error)
                    await self.wait_for_backend(retry_seconds)
                    retry_seconds = min(retry_seconds * 2, LAST_RETRY_SECONDS)
                    continue
                if snapshot.deleted:
                    # The feed lost the word of it.
                    self.gone(channel.topic)
                held, channel.held = channel.held or (), None
                if snapshot.cursor is not None and snapshot.reason is None and asked is not None:
                    if snapshot.events:
                        channel.take(snapshot.cursor.epoch, asked.offset, snapshot.events)
                else:
                    # Also where nobody knows it still: what the host recalled may have moved on.
                    if snapshot.cursor is not None or recent.epoch != "":
                        logger.info(
                            "hub: resync topic=%s reason=%s", channel.topic, snapshot.reason
                        )
                    channel.restart(snapshot)
                if channel.take_all(held):
                    break
                channel.held = channel.hold()
        finally:
            channel.resyncing = None

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for watcher in list(self.connections):
                watcher.tick(time.monotonic())
            if self.on_tick is not None:
                self.on_tick()

    async def _watch_backend(self) -> None:
        """See whether it answers, and look for tails that pub/sub lost without a word.

        While it is away this is the only one in the process who asks for reading.
        """
        due = time.monotonic() + self._tops_seconds
        while True:
            away = self.degraded_since is not None
            await asyncio.sleep(PROBE_SECONDS if away else TICK_SECONDS)
            thorough = self.degraded_since is not None or time.monotonic() >= due
            try:
                await self._connect()
                await self._backend.probe(thorough=thorough)
                if thorough:
                    due = time.monotonic() + self._tops_seconds * random.uniform(0.85, 1.15)  # noqa: S311
                    await self.check_tops()
                if self.degraded_since is not None:
                    await self._come_back()
                if not self._backend.has_warned:
                    await self._backend.warn()
            except BackendError as error:
                self.degrade(error)
            except Exception as error:
                logger.exception("hub: the look at the backend failed")
                self.degrade(error)

    async def _come_back(self) -> None:
        """Make up for all that was missed, then say so; not in time: at the next look."""
        if not await self._flush():
            return
        for channel in list(self._channels.values()):
            self._start_resync(channel, "outage")
        self._back.set()
        resyncs = {channel.resyncing for channel in self._channels.values() if channel.resyncing}
        deadline = time.monotonic() + RESYNC_SECONDS
        while resyncs:
            _, resyncs = await asyncio.wait(resyncs, timeout=PROBE_SECONDS)
            # Away again: they wait for the next look, so nobody may wait for them.
            if resyncs and (not self._back.is_set() or time.monotonic() > deadline):
                return
        # Somebody else's call may have failed meanwhile, and have the next look wait for us.
        if self._backend.is_away or not self._back.is_set():
            return
        seconds = self.degraded_seconds
        self.degraded_since = None
        self.stats.degraded_seconds = seconds
        self.meanwhile.end()
        logger.info("hub: restored after_seconds=%.1f", time.monotonic() - self._degraded_at)
        for watcher in list(self.connections):
            watcher.restored()

    def _sheltered(self, topics: set[str]) -> None:
        """Called in the emitter's thread: what this process said has to wait."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._show_sheltered, topics)

    def _show_sheltered(self, topics: set[str]) -> None:
        self.degrade("events of this process have to wait")
        self.meanwhile.show_sheltered(topics)

    async def check_tops(self) -> None:
        """Resync every channel that the backend is ahead of.

        Raises:
            BackendError: nothing was found out.
        """
        known = {topic: channel.recent.cursor for topic, channel in self._channels.items()}
        tops = await self._backend.tops(list(known)) if known else {}
        for topic, before in known.items():
            channel, top = self._channels.get(topic), tops.get(topic)
            if channel is None or channel.held is not None or channel.recent.cursor != before:
                continue
            if (top.cursor if top else NOWHERE) != before:
                self._start_resync(channel, "tail")

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, BackendError):
            logger.error("hub: task failed task=%s", task.get_name(), exc_info=error)


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
