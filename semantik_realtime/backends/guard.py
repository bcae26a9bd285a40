"""The one object of a process that knows whether its backend answers.

`GuardedBackend` wraps a backend. It gives `snapshot`, `page`, `tops` and
`status` a deadline, and has a circuit breaker for reads and one for writes, because a
server whose memory is full, or a replica, answers reads and refuses writes. A
failed call opens a breaker. (A `snapshot` or `page` may have failed because its
answer is big: then a small read decides.) While it is open, further calls fail
without reaching the server, except for a few that find out whether it is back:

- In a web process that is `probe`, called by `semantik_realtime.web.outage`.
- In a process that never calls `probe`, such as a Celery worker, `publish`,
  `claim` and `hold` are never refused, because the emitter's retries are the
  probe. Of the other calls one in `RETRY_SECONDS` is let through.

Emitter, hub, tracker and routes ask this object or listen to it. None of them
keeps a record of its own of whether the backend is up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from semantik_realtime.cancellation import keep_cancellation
from semantik_realtime.core.breaker import CircuitBreaker
from semantik_realtime.core.event import Cursor, Draft, Event, Receipt
from semantik_realtime.core.holding import Holding
from semantik_realtime.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    TopicRefused,
)
from semantik_realtime.hookspecs import Backend, Page, Sink, Snapshot, Status, Top

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Between two calls that are let through an open breaker, in a process that does not probe."""

HANG_SECONDS = 1.0
"""After so long a `publish`, `claim` or `hold` without a reply makes `fails_writes` true."""

WARN_SECONDS = 60.0
"""Between two log lines about reads that fail while the backend answers others."""

PROBE_TOPIC = "probe:0"
"""The topic that a probe reads and subscribes. Nothing is ever appended to it."""

PROBE_LEASE_SECONDS = 10.0
"""Duration of the lease by which a probe finds out whether writes are accepted."""

Result = TypeVar("Result")
Listener = Callable[[BackendError], object]


class _State(msgspec.Struct):
    started_at: str = ""
    ended_at: str = ""


class _StateEvent(msgspec.Struct):
    state: _State


_decode_start = msgspec.json.Decoder(_StateEvent).decode


class GuardedBackend:
    """A backend with deadlines and circuit breakers. It is a `Backend` itself.

    The writes `publish`, `claim`, `delete`, `lease`, `release`, `hold` and
    `overdue` block, and may be called from any thread. The coroutines belong to
    the loop on which `open` was awaited. The properties may be read in any
    thread, except `is_open`.

    Args:
        backend: the configured backend, or `bind_hooks` of it and its plugins.
        timeout_seconds: deadline of `snapshot`, `page`, `tops` and `status`. A backend
            has deadlines of its own for the other calls (about 5 s).
    """

    def __init__(self, backend: Backend, timeout_seconds: float) -> None:
        self.failed_reads = 0
        """Reads that failed while the backend answered a smaller one."""
        self._backend = backend
        self._timeout_seconds = timeout_seconds
        # Holds this process's own probe lease. After a fork the child may share it: a lease that
        # is held already is renewed, which proves as much.
        self._holder = secrets.token_hex(6)
        self.make_reader: Callable[[], Backend | None] = lambda: None
        """Makes a backend of its own for `read_start`, or None. Set once, by the runtime."""
        # Called with the error when a breaker opens. Added by `listen`, never removed: the one
        # listener lives as long as this object.
        self._listeners: list[Listener] = []
        # When the next failed read may be logged, on the monotonic clock.
        self._warn_at = 0.0
        # The loop on which `open` was awaited; None while closed.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reset()

    def _reset(self) -> None:
        self._reads = CircuitBreaker(RETRY_SECONDS)
        self._writes = CircuitBreaker(RETRY_SECONDS)
        # Whether `probe` was called since the last reset. From then on nothing else is let through
        # an open breaker.
        self._is_probed = False
        # The monotonic time at which each running call of the emitter began, by an own object.
        self._emitting: dict[object, float] = {}

    @property
    def is_away(self) -> bool:
        """Whether a breaker is open, or a `publish`, `claim` or `hold` hangs."""
        return self._reads.is_open or self.fails_writes

    @property
    def fails_writes(self) -> bool:
        """Whether the breaker of writes is open, or a `publish`, `claim` or `hold` hangs."""
        if self._writes.is_open:
            return True
        # A copy: another thread's `publish` may begin or end here.
        began = min(list(self._emitting.values()), default=None)
        return began is not None and time.monotonic() - began > HANG_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether `open` was awaited on the running loop, so that this coroutine may read."""
        return self._loop is asyncio.get_running_loop()

    def replace(self, backend: Backend) -> Backend:
        """Call ``backend`` from now on, with closed breakers. Return the one before.

        A call that runs ends with the one before. While this is open, ``backend`` must work
        without `open`.
        """
        before, self._backend = self._backend, backend
        self._reset()
        return before

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with the error each time a breaker opens.

        It is called in the thread of the call that failed, before that call
        raises, and must not block.
        """
        self._listeners.append(listener)

    async def probe(self, *, thorough: bool) -> None:
        """Call the server whether or not the breakers are open. Needs `open`.

        A quick probe makes one read. A thorough one also a write and a
        subscription, so only a thorough one closes the breaker of writes.

        Raises:
            BackendError: one of these calls failed.
        """
        self._is_probed = True
        try:
            await self._read(self._in_time(self._backend.tops([PROBE_TOPIC])))
        except BackendError as error:
            # A server that does not answer a read accepts no write either. Opening both
            # breakers saves the next writer from waiting for a deadline.
            self._failed(self._writes, error)
            raise
        if not thorough:
            return
        place = f"{PROBE_TOPIC}:{self._holder}"
        await asyncio.to_thread(
            self._write, lambda: self._backend.lease(place, self._holder, 1, PROBE_LEASE_SECONDS)
        )
        try:
            await self._read(self._backend.subscribe(PROBE_TOPIC, _NullSink()))
        finally:
            # Not by `_read`: its success would close the breaker that a failed subscription opened.
            await self._backend.unsubscribe(PROBE_TOPIC)

    # Writes.

    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        return self._emit(lambda: self._backend.publish(drafts))

    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        return self._emit(lambda: self._backend.claim(topic, job, token, owner))

    def delete(self, topic: str) -> bool:
        self._check(self._writes)
        return self._write(lambda: self._backend.delete(topic))

    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        self._check(self._writes)
        return self._write(lambda: self._backend.lease(name, holder, limit, seconds))

    def release(self, name: str, holder: str) -> bool:
        self._check(self._writes)
        return self._write(lambda: self._backend.release(name, holder))

    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        return self._emit(lambda: self._backend.hold(holder, jobs, ended, seconds))

    def overdue(self, seconds: float) -> Sequence[Holding]:
        self._check(self._writes)
        return self._write(lambda: self._backend.overdue(seconds))

    def close_writer(self) -> None:
        # Called after a fork too, where another thread of the parent may have been in the middle
        # of a change.
        self._reset()
        self._backend.close_writer()

    # Reads.

    def read_start(self, topic: str, job: str) -> str:
        """Return when the newest attempt of ``job`` began, by the state in ``topic``; "": unknown.

        Of an attempt whose end alone is known, which another process has sent: when it ended.
        For a thread without a loop: it opens connections of its own, so it is for rare cases.
        """
        reader = self.make_reader()
        if reader is None or self.is_away:
            return ""

        async def read() -> bytes | None:
            async with asyncio.timeout(self._timeout_seconds):
                try:
                    await reader.open()
                    return (await reader.snapshot(topic, None, 0)).states.get(job)
                finally:
                    await reader.close()

        try:
            found = asyncio.run(read())
            if found is None:
                return ""
            state = _decode_start(found).state
            return state.started_at or state.ended_at
        except (BackendError, TimeoutError, msgspec.DecodeError) as error:
            logger.warning("guard: start not read topic=%s error=%s", topic, error)
            return ""

    async def open(self) -> None:
        # Through an open breaker: during an outage only the prober calls this.
        await self._read(self._backend.open())
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        self._loop = None
        await self._backend.close()

    async def subscribe(self, topic: str, sink: Sink) -> None:
        self._check_reading()
        await self._read(self._backend.subscribe(topic, sink))

    async def unsubscribe(self, topic: str) -> None:
        await self._backend.unsubscribe(topic)

    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        self._check_reading()
        return await self._read_much(topic, self._backend.snapshot(topic, after, history))

    async def page(self, topic: str, after: int, limit: int) -> Page:
        self._check_reading()
        return await self._read_much(topic, self._backend.page(topic, after, limit))

    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        self._check_reading()
        return await self._read(self._in_time(self._backend.tops(topics)))

    async def status(self) -> Status:
        try:
            return await self._in_time(self._backend.status())
        except BackendError as error:
            return Status(backend="", reachable=False, server=str(error))

    # Inside.

    def _check_reading(self) -> None:
        # This is no failure of the backend, so no breaker opens.
        if not self.is_open:
            raise BackendUnavailable("the backend is not open on this loop")
        self._check(self._reads)

    def _check(self, breaker: CircuitBreaker) -> None:
        if breaker.is_open and (self._is_probed or not breaker.admits(time.monotonic())):
            raise BackendUnavailable("the backend is away")

    def _emit(self, call: Callable[[], Result]) -> Result:
        if self._is_probed:
            # While reads fail the probe decides when drafts are sent again: both directions
            # come back together.
            self._check(self._reads)
            self._check(self._writes)
        running = object()
        self._emitting[running] = time.monotonic()
        try:
            return self._write(call)
        finally:
            # `close_writer` may have reset it.
            self._emitting.pop(running, None)

    def _write(self, call: Callable[[], Result]) -> Result:
        try:
            result = call()
        except TopicRefused:
            # The server answers; it refuses one topic.
            self._writes.succeeded()
            raise
        except BackendError as error:
            self._failed(self._writes, error)
            raise
        self._writes.succeeded()
        return result

    async def _read(self, call: Awaitable[Result]) -> Result:
        try:
            result = await keep_cancellation(call)
        except BackendError as error:
            self._failed(self._reads, error)
            raise
        self._reads.succeeded()
        return result

    async def _read_much(self, topic: str, call: Awaitable[Result]) -> Result:
        """Await a read whose answer may be big; when it fails, a small read tells why."""
        try:
            result = await self._in_time(call)
        except BackendError as error:
            if isinstance(error, BackendRefused) or not await self._answers():
                self._failed(self._reads, error)
            else:
                self._note_failed_read(topic, error)
            raise
        self._reads.succeeded()
        return result

    async def _answers(self) -> bool:
        """Return True if no breaker of reads is open and a small read succeeds."""
        if self._reads.is_open:
            return False
        try:
            await self._in_time(self._backend.tops([PROBE_TOPIC]))
        except BackendError:
            return False
        return True

    def _note_failed_read(self, topic: str, error: BackendError) -> None:
        self.failed_reads += 1
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + WARN_SECONDS
            logger.warning(
                "guard: read failed, but the backend answers topic=%s error=%s", topic, error
            )

    async def _in_time(self, call: Awaitable[Result]) -> Result:
        # A client library may retry for longer than its own deadline.
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await keep_cancellation(call)
        except TimeoutError:
            raise BackendUnavailable(
                f"no answer in {self._timeout_seconds:g} s from the backend"
            ) from None

    def _failed(self, breaker: CircuitBreaker, error: BackendError) -> None:
        if not isinstance(error, TopicRefused) and breaker.failed(time.monotonic()):
            for listener in self._listeners:
                try:
                    listener(error)
                except Exception:
                    logger.exception("guard: listener failed")


async def log_warnings(backend: GuardedBackend) -> bool:
    """Log the warnings of the backend's status. Return False if the backend is not reachable."""
    status = await backend.status()
    if status.reachable:
        for warning in status.warnings:
            logger.warning("backend: %s", warning)
    return status.reachable


class _NullSink:
    """The sink of a probe."""

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        pass

    def interrupted(self, topic: str) -> None:
        pass

    def gone(self, topic: str) -> None:
        pass
