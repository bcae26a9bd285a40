"""The fan-out of one web process: a registry of its channels and connections.

The hub subscribes each watched topic once at the backend, however many
connections watch it. The topic's `Channel` stores each event once and encodes
it once for all watchers at the same cursor; each connection writes in a task of
its own, so a slow one delays no other one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.cancellation import STOP_SECONDS, stop_tasks
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.splice import NOWHERE, Phase, ResyncReason
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Page, Snapshot, Status, Top
from semantik_realtime.web.hub.channel import Channel, ChannelIO, has_failed
from semantik_realtime.web.hub.drains import Drains
from semantik_realtime.web.hub.stats import HubStats
from semantik_realtime.web.hub.subscription import Subscription, Watcher
from semantik_realtime.web.hub.top_reader import TopReader
from semantik_realtime.web.outage import DegradedMode
from semantik_realtime.web.reads import ReadQueue

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
TOPS_AT_ONCE = 200
"""Topics whose ends are asked for in one call, and compared before anything else gets a turn."""
TICKS_AT_ONCE = 500
"""Connections that get a tick before anything else gets a turn."""
START_SECONDS = 1.0
"""How long the start of a web server waits for a backend that does not answer."""


class Hub:
    """The channels and connections of a process, and the tasks that keep them up to date.

    Lives on one event loop at a time: the first use on a loop starts it there,
    `close` ends it. It is the `semantik_realtime.hookspecs.Sink` of every topic
    that it subscribes; the backend calls it on that loop.

    Args:
        backend: the process's backend.
        degraded_mode: tells the connections about outages and bridges them.
        limits: when a connection counts as slow; passed on to the channels.
    """

    def __init__(
        self, backend: GuardedBackend, degraded_mode: DegradedMode, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.connections: set[Watcher] = set()
        """The open connections. `register` adds and `unregister` removes; a new loop clears it."""
        self.draining = False
        """Whether `drain` has begun: a connection that registers now is closed at once."""
        self.stats = HubStats()
        self.reads, self.drains = ReadQueue(), Drains()
        """The reads of logs, in turn, and the writes to connections; anew for each loop."""
        self._backend = backend
        self._degraded_mode = degraded_mode
        # What `top` asks, in batches: many connections ask at once when a server restarts.
        self._top_reader = TopReader(self._read_tops, self.spawn)
        # Added by `on_tick`, never removed; `_tick` calls them about once a second.
        self._on_tick: list[Callable[[], object]] = []
        # Added by `on_read`, never removed.
        self._on_read: list[Callable[[str, Snapshot], object]] = []
        self._channel_io = ChannelIO(
            subscribe=lambda topic: self._backend.subscribe(topic, self),
            read=self._read,
            pause=degraded_mode.wait_for_backend,
            spawn=self.spawn,
            count_resync=self.stats.count_resync,
            ended=self._remove,
        )
        # By topic. `follow` makes a channel; it is removed after its last watcher.
        self._channels: dict[str, Channel] = {}
        # All tasks that `spawn` has started and that have not ended.
        self._tasks: set[asyncio.Task[Any]] = set()
        # Opens the backend for reading on this loop; `connect` starts it again if it failed.
        self._opening: asyncio.Task[None] | None = None
        # The loop that the hub lives on; None while closed.
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def topics(self) -> int:
        """How many topics are watched, or about to be."""
        return len(self._channels)

    @property
    def failed_reads(self) -> int:
        """Reads that failed while the backend answered a smaller one, since the process began."""
        return self._backend.failed_reads

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that the hub lives on, if it runs."""
        return self._loop if self._loop is not None and self._loop.is_running() else None

    def on_tick(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` about once a second while the hub is open."""
        self._on_tick.append(callback)

    def on_read(self, callback: Callable[[str, Snapshot], object]) -> None:
        """Call ``callback`` with each topic that is read, and what was read. It must not raise."""
        self._on_read.append(callback)

    def watched(self) -> list[str]:
        """Return the topics that are watched."""
        return list(self._channels)

    # Start and stop.

    async def open(self) -> None:
        """Open the backend for reading, if it is not open.

        Raises:
            BackendError: it cannot be opened. During an outage this is raised
                without a try: only `connect`, which the probe calls, tries then.
        """
        self._begin()
        if self._degraded_mode.since is not None and not self._backend.is_open:
            raise BackendUnavailable("the backend is away")
        await self.connect()

    async def open_at_start(self) -> None:
        """Open the backend for reading, or begin degraded: the degraded mode goes on trying.

        Takes `START_SECONDS` at most. A longer try is not cancelled.
        """
        self._begin()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self.connect()
        except TimeoutError:
            self._degraded_mode.begin(f"no connection in {START_SECONDS:g} s")
        except BackendError as error:
            self._degraded_mode.begin(error)

    async def connect(self) -> None:
        """Open the backend for reading, during an outage too. Simultaneous calls share one try.

        Raises:
            BackendError: it cannot be opened now.
        """
        if self._opening is None or has_failed(self._opening):
            self._opening = self.spawn(self._backend.open(), "open")
        await asyncio.shield(self._opening)

    async def close(self) -> None:
        """End every task and the reading, in 2 `STOP_SECONDS`. Connections must have ended."""
        deadline = time.monotonic() + STOP_SECONDS
        # A task that ends may have started another one.
        while (tasks := self._tasks - {asyncio.current_task()}) and time.monotonic() < deadline:
            await stop_tasks(tasks, deadline - time.monotonic())
        self._degraded_mode.stop()
        closing = asyncio.ensure_future(self._backend.close())
        _, pending = await asyncio.wait((closing,), timeout=STOP_SECONDS)
        await stop_tasks(pending, 0.0)
        self._loop = None

    async def drain(self, timeout_seconds: float = 2.0) -> None:
        """Close every connection, and wait until all have ended or the time is over."""
        self.draining = True
        for watcher in list(self.connections):
            watcher.drain()
        deadline = time.monotonic() + timeout_seconds
        while self.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task, which `close` cancels. An error that it raises is logged.

        A BackendError is not, because the caller that awaits the task handles it.
        """
        task = asyncio.get_running_loop().create_task(work, name=f"semantik-realtime-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    # Connections.

    def register(self, watcher: Watcher) -> None:
        """Add a connection, which from now on gets ticks.

        If the process drains or the backend is away it gets that notice at once.
        """
        self._begin()
        self.connections.add(watcher)
        if self.draining:
            watcher.drain()
        elif self._degraded_mode.since is not None:
            watcher.degraded(self._degraded_mode.since)

    def unregister(self, watcher: Watcher) -> None:
        """Remove a connection that has ended."""
        self.connections.discard(watcher)

    # Channels.

    async def follow(
        self, watcher: Watcher, topic: str, asked: Cursor | None, history: int
    ) -> tuple[Subscription, Snapshot]:
        """Make ``watcher`` a watcher of ``topic``, until `Source.leave`; see `Channel.follow`.

        Args:
            watcher: the connection.
            topic: the topic; its channel is made if nobody watches it yet.
            asked: the client's cursor, or None.
            history: how many events come with a snapshot.

        Raises:
            BackendError: the watcher was not added.
        """
        await self.open()
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = Channel(topic, self.limits, self._channel_io)
        channel.reserve()
        try:
            await channel.subscribed()
            return await channel.follow(watcher, asked, history)
        except BaseException:
            channel.release()
            raise

    async def check_tops(self) -> None:
        """Read each channel again whose cursor is not the backend's: pub/sub loses in silence.

        One that got events since the last call is left out: the next ones show a gap, or the next
        call looks.

        Raises:
            BackendError: it cannot be asked now.
        """
        channels = list(self._channels.values())
        # Each part has a deadline of its own: however many topics are watched, it is no outage.
        # And events wait for one part at most.
        for start in range(0, len(channels), TOPS_AT_ONCE):
            await self._check_tops(channels[start : start + TOPS_AT_ONCE])

    async def _check_tops(self, channels: Sequence[Channel]) -> None:
        known = {channel.topic: channel for channel in channels if channel.is_unchanged()}
        tops = await self._backend.tops(list(known)) if known else {}
        for topic, channel in known.items():
            if self._channels.get(topic) is not channel or channel.phase is not Phase.LIVE:
                continue
            top, before = tops.get(topic), channel.checked
            if channel.cursor == before and (top.cursor if top else NOWHERE) != before:
                channel.resync(ResyncReason.TAIL)

    def resync_all(self) -> set[asyncio.Task[None]]:
        """Read every channel again after an outage; return the tasks that do it."""
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
        return await self._top_reader.read(topic)

    async def read(self, topic: str) -> Snapshot:
        """Read a topic's states once. The caller has a turn of `reads`.

        Raises:
            BackendError: it cannot be read now.
        """
        await self.open()
        snapshot = await self._backend.snapshot(topic, None, 0)
        self._note_read(topic, snapshot)
        return snapshot

    def _note_read(self, topic: str, snapshot: Snapshot) -> None:
        for callback in self._on_read:
            callback(topic, snapshot)

    async def page(self, topic: str, after: int, limit: int) -> Page:
        """Read a part of a topic's log once. The caller has a turn of `reads`.

        Raises:
            BackendError: it cannot be read now.
        """
        await self.open()
        return await self._backend.page(topic, after, limit)

    async def status(self) -> Status:
        """Return the backend's status; during an outage without asking the server."""
        try:
            await self.open()
        except BackendError as error:
            return Status(backend="", reachable=False, server=str(error))
        if self._backend.is_away:
            return Status(backend="", reachable=False, server="the backend is away")
        status = await self._backend.status()
        if not status.reachable:
            self._degraded_mode.begin(status.server)
        return status

    # Sink: called by the backend.

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        self.stats.received += len(events)
        channel = self._channels.get(topic)
        if channel is not None:
            channel.receive(prev, events)

    def interrupted(self, topic: str) -> None:
        channel = self._channels.get(topic)
        if channel is not None:
            channel.resync(ResyncReason.INTERRUPTED)

    def gone(self, topic: str) -> None:
        channel = self._channels.get(topic)
        if channel is not None:
            channel.gone()

    async def _read(
        self, topic: str, asked: Cursor | None, history: int, user: str | None
    ) -> Snapshot:
        async with self.reads.turn(user):
            snapshot = await self._backend.snapshot(topic, asked, history)
        self._note_read(topic, snapshot)
        return snapshot

    async def _read_tops(self, topics: Sequence[str]) -> dict[str, Top]:
        await self.open()
        return await self._backend.tops(topics)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        # A new loop (a test client, a reload): all tasks and connections ended with the old one.
        self._loop, self._opening, self.draining = loop, None, False
        self.reads, self.drains = ReadQueue(), Drains()
        self._channels.clear()
        self._tasks.clear()
        self.connections.clear()
        self.spawn(self._tick(), "tick")
        self._degraded_mode.start(self)

    def _remove(self, channel: Channel) -> None:
        if self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]
            self.spawn(self._unsubscribe(channel), "unsubscribe")

    async def _unsubscribe(self, channel: Channel) -> None:
        # A subscription under way would fail, which counts as a failure of the backend.
        await channel.wait_until_subscribed()
        # Not if the topic is followed again in the meantime.
        if channel.topic not in self._channels:
            await self._backend.unsubscribe(channel.topic)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            # Nothing is kept for each connection: with thousands of them, what outlives a young
            # collection of garbage would make full ones due, which stop the process.
            for place, watcher in enumerate(list(self.connections), start=1):
                _call(watcher.tick, time.monotonic())
                if place % TICKS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            for tick in self._on_tick:
                _call(tick)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, BackendError):
            logger.error("hub: task failed task=%s", task.get_name(), exc_info=error)


def _call(tick: Callable[..., object], *given: float) -> None:
    try:
        tick(*given)
    except Exception:
        # The other connections still need their deadlines and heartbeats.
        logger.exception("hub: tick failed")
