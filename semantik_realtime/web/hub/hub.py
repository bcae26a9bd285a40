"""The registry of a process's channels and connections.

One subscription at the backend serves every connection that watches a topic.
An event is stored once, in its channel, and encoded once for all watchers at
the same position; a slow connection delays no other one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

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
from semantik_realtime.core.splice import NOWHERE, Phase, ResyncReason
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Snapshot, Status, Top
from semantik_realtime.web.hub.channel import Channel, ChannelIO, has_failed
from semantik_realtime.web.hub.stats import HubStats
from semantik_realtime.web.hub.subscription import Subscription, Watcher
from semantik_realtime.web.outage import DegradedMode

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0


class Hub:
    """The channels and connections of a process, and the tasks that keep them up to date.

    Lives on one event loop at a time, from its first use there to `close`. It
    is the `semantik_realtime.hookspecs.Sink` of every topic that it subscribes.

    Args:
        backend: the process's backend.
        outage: what the process does while the backend is away.
        limits: when a connection counts as slow.
    """

    def __init__(
        self, backend: GuardedBackend, outage: DegradedMode, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.connections: set[Watcher] = set()
        """Open connections; changed by `register` and `unregister` only."""
        self.draining = False
        """Whether `drain` has begun: new connections are sent away at once."""
        self.stats = HubStats()
        self._backend = backend
        self._outage = outage
        # Called about once a second, from `on_tick`.
        self._on_tick: list[Callable[[], object]] = []
        # By topic. A channel is there while somebody follows it or is about to.
        self._channels: dict[str, Channel] = {}
        # All tasks that `spawn` has started and that have not ended.
        self._tasks: set[asyncio.Task[Any]] = set()
        # Opens the reader; started anew if it failed.
        self._opening: asyncio.Task[None] | None = None
        # The loop that the hub lives on; None while closed.
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def topics(self) -> int:
        """How many topics are watched."""
        return len(self._channels)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that the hub lives on, if it runs."""
        return self._loop if self._loop is not None and self._loop.is_running() else None

    def on_tick(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` about once a second while the hub is open."""
        self._on_tick.append(callback)

    # Life.

    async def open(self) -> None:
        """Open the reader.

        Raises:
            BackendError: it cannot be opened now; while an outage is known, at once.
        """
        self._begin()
        is_open = self._opening is not None and self._opening.done()
        if self._outage.since is not None and not (is_open and not has_failed(self._opening)):  # type: ignore[arg-type]
            raise BackendUnavailable("the backend is away")
        await self.connect()

    async def open_at_start(self, tries: int) -> None:
        """Open the reader, with pauses of 1, 2, 4… s between ``tries``.

        Raises:
            BackendError: it cannot be opened. From here on the hub keeps trying.
        """
        self._begin()
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(tries),
            wait=wait_exponential() + wait_random(0, 0.5),
            retry=retry_if_exception_type(BackendError),
            reraise=True,
        ):
            with attempt:
                await self.connect()

    async def connect(self) -> None:
        """Open the reader, during an outage too. Callers at the same time share one try.

        Raises:
            BackendError: it cannot be opened now.
        """
        if self._opening is None or has_failed(self._opening):
            self._opening = self.spawn(self._backend.open(), "open")
        await asyncio.shield(self._opening)

    async def close(self) -> None:
        """End every task and close the reader. Connections must have ended."""
        while tasks := self._tasks - {asyncio.current_task()}:
            # A library may swallow a cancellation (wait_for until Python 3.12), so repeat it.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)
        self._outage.stop()
        await self._backend.close()
        self._loop = None

    async def drain(self, timeout_seconds: float = 2.0) -> None:
        """Send every connection away and wait until all have ended, with a deadline."""
        self.draining = True
        for watcher in list(self.connections):
            watcher.drain()
        deadline = time.monotonic() + timeout_seconds
        while self.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task that ends with the hub; an error that it raises is logged."""
        task = asyncio.get_running_loop().create_task(work, name=f"semantik-realtime-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    # Connections.

    def register(self, watcher: Watcher) -> None:
        """Add a connection: it gets ticks, and notices about outage and drain."""
        self._begin()
        self.connections.add(watcher)
        if self.draining:
            watcher.drain()
        elif self._outage.since is not None:
            watcher.degraded(self._outage.since)

    def unregister(self, watcher: Watcher) -> None:
        """Remove a connection that has ended."""
        self.connections.discard(watcher)

    # Channels.

    async def follow(
        self, watcher: Watcher, topic: str, asked: Cursor | None, history: int
    ) -> tuple[Subscription, Snapshot]:
        """Add a watcher to the channel of ``topic``; see `Channel.follow`. End it with `leave`.

        Raises:
            BackendError: the watcher was not added.
        """
        await self.open()
        channel = self._channels.get(topic)
        if channel is None:
            io = ChannelIO(
                subscribe=lambda topic: self._backend.subscribe(topic, self),
                read=self._backend.snapshot,
                pause=self._outage.wait_for_backend,
                spawn=self.spawn,
                count_resync=self.stats.count_resync,
            )
            channel = self._channels[topic] = Channel(topic, self.limits, io)
        channel.add_user()
        try:
            await channel.subscribed()
            return await channel.follow(watcher, asked, history)
        except BaseException:
            self._remove_user(channel)
            raise

    def leave(self, subscription: Subscription) -> None:
        """Remove a watcher; the last one ends the subscription at the backend."""
        subscription.channel.leave(subscription)
        self._remove_user(subscription.channel)

    async def check_tops(self) -> None:
        """Resync every channel that the backend is ahead of: pub/sub may lose a last event.

        Raises:
            BackendError: it cannot be asked now.
        """
        known = {topic: channel.cursor for topic, channel in self._channels.items()}
        tops = await self._backend.tops(list(known)) if known else {}
        for topic, before in known.items():
            channel, top = self._channels.get(topic), tops.get(topic)
            if channel is None or channel.phase is not Phase.LIVE or channel.cursor != before:
                continue
            if (top.cursor if top else NOWHERE) != before:
                channel.resync(ResyncReason.TAIL)

    def resync_all(self) -> set[asyncio.Task[None]]:
        """Read every channel again after an outage; return the tasks that do so."""
        channels = list(self._channels.values())
        for channel in channels:
            channel.resync(ResyncReason.OUTAGE)
        return {channel.resyncing for channel in channels if channel.resyncing is not None}

    # Reading without watching.

    async def top(self, topic: str) -> Top | None:
        """Return where a topic ends, and its owner; None if the backend does not know it.

        Raises:
            BackendError: it cannot be asked now.
        """
        await self.open()
        return (await self._backend.tops([topic])).get(topic)

    async def read(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        """Read a topic once.

        Raises:
            BackendError: it cannot be read now.
        """
        await self.open()
        return await self._backend.snapshot(topic, after, history)

    async def status(self) -> Status:
        """Ask for the backend's condition; during an outage the answer comes at once."""
        try:
            await self.open()
        except BackendError as error:
            return Status("", False, str(error))
        if self._backend.is_away:
            return Status("", False, "the backend is away")
        status = await self._backend.status()
        if not status.reachable:
            self._outage.begin(status.server)
        return status

    # Sink: called by the backend.

    def events(self, topic: str, epoch: str, prev: int, events: Sequence[Event]) -> None:
        self.stats.received += len(events)
        channel = self._channels.get(topic)
        if channel is not None:
            channel.receive(epoch, prev, events)

    def interrupted(self, topic: str) -> None:
        channel = self._channels.get(topic)
        if channel is not None:
            channel.resync(ResyncReason.INTERRUPTED)

    def gone(self, topic: str) -> None:
        channel = self._channels.get(topic)
        if channel is not None:
            channel.gone()

    # Inside.

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        # A new loop (a test client, a reload): what belonged to the old one ended with it.
        self._loop, self._opening, self.draining = loop, None, False
        self._channels.clear()
        self._tasks.clear()
        self.connections.clear()
        self.spawn(self._tick(), "tick")
        self._outage.start(self)

    def _remove_user(self, channel: Channel) -> None:
        if channel.remove_user() and self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]
            channel.close()
            self.spawn(self._unsubscribe(channel.topic), "unsubscribe")

    async def _unsubscribe(self, topic: str) -> None:
        # Not if the topic is followed again in the meantime.
        if topic not in self._channels:
            await self._backend.unsubscribe(topic)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for watcher in list(self.connections):
                watcher.tick(time.monotonic())
            for callback in self._on_tick:
                callback()

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, BackendError):
            logger.error("hub: task failed task=%s", task.get_name(), exc_info=error)
