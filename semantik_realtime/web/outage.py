"""The degraded mode of a web process: what it does from the loss of the backend to its return.

It listens to `semantik_realtime.backends.guard.GuardedBackend`. From the first
failure on it tells every connection, probes the backend, and shows what is
known without it: the host's record (`recall`), and the states of drafts that
this process could not send yet. After the return it sends those drafts, reads
every watched topic again, and only then tells the connections that all is up
to date.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import pluggy

from semantik_realtime.backends.guard import GuardedBackend, log_warnings
from semantik_realtime.backoff import spread
from semantik_realtime.cancellation import cancel_until_done
from semantik_realtime.clock import now_text
from semantik_realtime.core.delayed import DelayedStates
from semantik_realtime.core.event import Draft
from semantik_realtime.core.fold import is_ahead
from semantik_realtime.core.words import Words
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import NO_OPINION
from semantik_realtime.urls import mask_text
from semantik_realtime.web.host_hooks import ask_host

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at a backend that answers."""
PROBE_SECONDS = 0.5
"""Between two probes while the backend is away."""
RESYNC_SECONDS = 5.0
"""How long the topics may take to be read again before the next probe comes first."""
MAX_RECALLS = 8
"""How many topics the host is asked for at the same time."""

States = Mapping[str, bytes]
"""By key, as JSON."""
Recall = Callable[[str], Awaitable[States | None]]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Viewer(Protocol):
    """A connection, as the degraded mode sees it."""

    @property
    def allowed(self) -> Mapping[str, str | None]:
        """The topics whose states it may get, each with its owner; None: not known."""

    def degraded(self, since: str) -> None:
        """The backend is away since ``since``."""

    def restored(self) -> None:
        """The backend is back."""

    def provisional(self, topic: str, epoch: str, source: str, states: States) -> None:
        """Show ``states`` until the backend is back."""


class Fanout(Protocol):
    """The hub, as the degraded mode sees it."""

    @property
    def connections(self) -> Collection[Viewer]:
        """The open connections."""

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task that ends with the hub."""

    async def connect(self) -> None:
        """Open the reader."""

    async def check_tops(self) -> None:
        """Resync the channels that the backend is ahead of."""

    def resync_all(self) -> set[asyncio.Task[None]]:
        """Read every channel again; return the tasks that do so."""


class HostRecord:
    """The host's own record of its jobs, through the ``recall`` hook; ``words`` are the host's."""

    def __init__(self, plugins: pluggy.PluginManager, words: Words) -> None:
        self._plugins = plugins
        self._words = words
        # Whether the last call failed: each failure is logged once.
        self._fails = False

    async def __call__(self, topic: str) -> States | None:
        """Return the record of ``topic``; None if the host has none.

        Raises:
            BackendUnavailable: the host cannot be asked now.
        """
        try:
            states = await ask_host(self._plugins, "recall", topic=topic)
            recalled = None
            if states is not None and states is not NO_OPINION:
                recalled = {
                    str(key): _encode(self._words.translate(dict(state)))
                    for key, state in states.items()
                }
        except Exception as error:
            # Whatever it raises or returns, the watchers must not lose their connection.
            if not self._fails:
                logger.warning(
                    "outage: recall failed topic=%s error=%s", topic, mask_text(repr(error))
                )
            self._fails = True
            raise BackendUnavailable("the host's record cannot be read now") from error
        self._fails = False
        return recalled


class DegradedMode:
    """Watches the backend, and bridges its outages for the connections of a process.

    Lives on the hub's loop, from `start` to `stop`; `add_delayed` and the
    backend's failures may come from any thread.

    Args:
        backend: the process's backend.
        recall: returns the host's own record of a topic (`HostRecord`).
        flush: sends the drafts that wait. Returns False if they still cannot be sent.
        recall_seconds: between two looks into the host's record of each topic.
        tops_seconds: between two thorough looks at a backend that answers.
        max_delayed_bytes: bound of the states of delayed drafts.
        url: of the backend's server, without what may be secret; for the log.
    """

    def __init__(
        self,
        backend: GuardedBackend,
        *,
        recall: Recall,
        flush: Callable[[], Awaitable[bool]],
        recall_seconds: float,
        tops_seconds: float,
        max_delayed_bytes: int,
        url: str = "",
    ) -> None:
        self.since: str | None = None
        """When the present outage was noticed (RFC 3339); None while there is none."""
        self._backend = backend
        self._url = url
        self._recall_host = recall
        self._flush = flush
        self._recall_seconds = recall_seconds
        self._tops_seconds = tops_seconds
        # The states of drafts that this process could not send in this outage, guarded by the
        # lock: the emitter's thread adds them.
        self._delayed = DelayedStates(max_delayed_bytes)
        self._lock = threading.Lock()
        # When the present outage began, on the monotonic clock, and how long earlier ones lasted.
        self._began_at = 0.0
        self._past_seconds = 0.0
        # Names the present outage on the wire; empty while there is none.
        self._epoch = ""
        # Whether the backend's warnings were logged.
        self._has_warned = False
        # The hub, and the loop that both live on; set by `start`, None after `stop`.
        self._hub: Fanout | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Cleared from the beginning of an outage until the backend answers again.
        self._answers = asyncio.Event()
        # Reads the host's record again and again during an outage.
        self._polling: asyncio.Task[Any] | None = None
        # Recalls under way, by topic: equal requests share one.
        self._recalls: dict[str, asyncio.Task[States | None]] = {}
        self._slots = asyncio.Semaphore(MAX_RECALLS)
        backend.listen(self._failed)

    @property
    def seconds(self) -> float:
        """How long the backend was away since the process began, the present outage included."""
        if self.since is None:
            return self._past_seconds
        return self._past_seconds + time.monotonic() - self._began_at

    def start(self, hub: Fanout) -> None:
        """Begin on the running loop, on which nothing is known of the backend yet."""
        self._hub, self._loop = hub, asyncio.get_running_loop()
        self.since = None
        self._end_provisional()
        self._answers = asyncio.Event()
        self._answers.set()
        self._slots = asyncio.Semaphore(MAX_RECALLS)
        self._recalls.clear()
        hub.spawn(self._watch(hub), "watch")

    def stop(self) -> None:
        """End. Nothing provisional is shown any more."""
        self._end_provisional()
        self._hub = self._loop = None

    def begin(self, error: object) -> None:
        """The backend failed: tell every connection, once, and show what is known without it."""
        hub = self._hub
        if hub is None:
            return
        self._answers.clear()
        if self.since is not None:
            return
        self._began_at = time.monotonic()
        self.since = now_text()
        logger.warning(
            "outage: degraded, the backend is away url=%s error=%s (start its server, or correct "
            "SEMANTIK_REALTIME_URL; it is tried twice a second until it answers)",
            self._url,
            error,
        )
        for viewer in list(hub.connections):
            viewer.degraded(self.since)
        self._epoch = f"m:{secrets.token_hex(5)}"
        self._polling = hub.spawn(self._poll(hub), "recall")

    async def wait_for_backend(self, seconds: float) -> None:
        """Wait ``seconds``, and while the backend is away until it answers again."""
        await asyncio.sleep(seconds)
        await self._answers.wait()

    def add_delayed(self, drafts: Sequence[Draft]) -> None:
        """Show the states of ``drafts``, which an outage delays. From the emitter's thread."""
        with self._lock:
            topics = self._delayed.add(drafts)
        self._call_soon(lambda: self._show_delayed(topics))

    async def recall(self, topic: str) -> States | None:
        """Return the host's own record of a topic that the backend does not know.

        Raises:
            BackendUnavailable: the host cannot be asked now.
        """
        hub = self._hub
        assert hub is not None
        # Many connections that subscribe at once share one query: a backend that has lost
        # everything must not send them all to the host's database.
        task = self._recalls.get(topic)
        if task is None:
            task = self._recalls[topic] = hub.spawn(self._recall_in_turn(topic), "recall")
            task.add_done_callback(lambda _: self._recalls.pop(topic, None))
        return await asyncio.shield(task)

    async def states(self, topic: str, owner: str | None = None) -> dict[str, bytes] | None:
        """Return what is known of ``topic``, which is ``owner``'s, without the backend, or None."""
        with self._lock:
            delayed = self._delayed.of(topic, owner)
        recalled = await self.recall(topic)
        if recalled is None and not delayed:
            return None
        states = dict(recalled or {})
        for key, state in delayed.items():
            # Never back: the host's record may be ahead of a delayed state.
            if key not in states or not is_ahead(_decode(states[key]), _decode(state)):
                states[key] = state
        return states

    def show(self, topic: str, viewer: Viewer) -> None:
        """Show a connection that has just subscribed ``topic`` what is known of it."""
        if self._epoch and self._hub is not None:
            self._hub.spawn(self._show(topic, [viewer]), "show")

    # The outage's beginning, as the backend's guard reports it.

    def _failed(self, error: object) -> None:
        if self._loop is _running_loop():
            self.begin(error)
        else:
            self._call_soon(lambda: self.begin(error))

    def _call_soon(self, call: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            # The loop may be closed in between.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call)

    # Probing and coming back.

    async def _watch(self, hub: Fanout) -> None:
        """Probe the backend, and look for last events that pub/sub has lost.

        While the backend is away this task alone reads from it.
        """
        due = time.monotonic() + self._tops_seconds
        while True:
            await asyncio.sleep(LOOK_SECONDS if self.since is None else PROBE_SECONDS)
            is_thorough = self.since is not None or time.monotonic() >= due
            try:
                await hub.connect()
                await self._backend.probe(thorough=is_thorough)
                if is_thorough:
                    due = time.monotonic() + spread(self._tops_seconds)
                    await hub.check_tops()
                if self.since is not None:
                    await self._come_back(hub)
                if not self._has_warned:
                    self._has_warned = await log_warnings(self._backend)
            except BackendError as error:
                self.begin(error)
            except Exception as error:
                logger.exception("outage: probe failed")
                self.begin(error)

    async def _come_back(self, hub: Fanout) -> None:
        """Catch up, then report the return; if that takes too long, a later probe goes on."""
        if not await self._flush():
            return
        resyncs = hub.resync_all()
        self._answers.set()
        deadline = time.monotonic() + RESYNC_SECONDS
        while resyncs:
            _, resyncs = await asyncio.wait(resyncs, timeout=PROBE_SECONDS)
            # Away again: the resyncs wait for the next probe, so the probe must not wait for them.
            if resyncs and (not self._answers.is_set() or time.monotonic() > deadline):
                return
        # Another call has failed during the resyncs: stay degraded until the next probe.
        if self._backend.is_away or not self._answers.is_set():
            return
        self._past_seconds, self.since = self.seconds, None
        self._end_provisional()
        logger.info("outage: restored after_seconds=%.1f", time.monotonic() - self._began_at)
        for viewer in list(hub.connections):
            viewer.restored()

    # Provisional states.

    def _end_provisional(self) -> None:
        self._epoch = ""
        with self._lock:
            self._delayed.clear()
        if self._polling is not None:
            cancel_until_done(self._polling)

    async def _poll(self, hub: Fanout) -> None:
        while True:
            topics = {topic for viewer in list(hub.connections) for topic in viewer.allowed}
            await asyncio.gather(*(self._show(topic, hub.connections) for topic in topics))
            await asyncio.sleep(spread(self._recall_seconds))

    async def _show(self, topic: str, viewers: Collection[Viewer]) -> None:
        epoch = self._epoch
        try:
            recalled = await self.recall(topic)
        except BackendError:
            recalled = None
        if recalled and epoch == self._epoch:
            self._send(topic, "recall", recalled, viewers)
        if self._epoch:
            self._send_delayed(topic, viewers)

    def _show_delayed(self, topics: Collection[str]) -> None:
        # The write that failed has begun the outage. Without one there is nothing to show.
        if self._epoch and self._hub is not None:
            for topic in topics:
                self._send_delayed(topic, self._hub.connections)

    def _send_delayed(self, topic: str, viewers: Collection[Viewer]) -> None:
        with self._lock:
            states, owner = self._delayed.of(topic), self._delayed.owner_of(topic)
        # A job's id may be used again by another owner. Where the watched topic's owner is not
        # known, the host has allowed the user by its own record.
        known = {None, owner}
        same = [it for it in viewers if owner is None or it.allowed.get(topic) in known]
        self._send(topic, "memory", states, same)

    def _send(self, topic: str, source: str, states: States, viewers: Collection[Viewer]) -> None:
        if not states:
            return
        for viewer in list(viewers):
            if topic in viewer.allowed:
                viewer.provisional(topic, self._epoch, source, states)

    async def _recall_in_turn(self, topic: str) -> States | None:
        async with self._slots:
            return await self._recall_host(topic)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
