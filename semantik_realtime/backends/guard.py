"""The one place of a process that knows whether its backend answers.

`GuardedBackend` has the hooks of a backend and adds deadlines to its reads and
a circuit breaker to each direction, because a server that is full, or a
replica, may answer reads and refuse writes. While a breaker is open, calls fail
at once. Only the prober calls through: in a web process that is `probe`, which
`semantik_realtime.web.outage` calls; in a worker it is the emitter, whose
retries are the probe. Emitter, hub, tracker and routes ask this object or
listen to it, and keep no opinion of their own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from semantik_realtime.core.breaker import CircuitBreaker
from semantik_realtime.core.event import Cursor, Draft, Event, Receipt
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Backend, Sink, Snapshot, Status, Top

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""How often a call is let through an open breaker where nobody probes."""
HANG_SECONDS = 1.0
"""A write without an answer for so long counts as failing."""
PROBE_TOPIC = "probe:0"
PROBE_SECONDS = 10.0
"""How long the lease lasts that a probe of writing takes."""

Result = TypeVar("Result")
Listener = Callable[[object], object]


class GuardedBackend:
    """A backend with deadlines and circuit breakers. It is a `Backend` itself.

    Writes may be called from any thread, reads on the loop that called `open`.

    Args:
        backend: the backend, with the plugins that wrap it.
        timeout_seconds: deadline of `snapshot`, `tops` and `status`. The other
            calls have a deadline of the backend's own.
    """

    def __init__(self, backend: Backend, timeout_seconds: float) -> None:
        self._backend = backend
        self._timeout_seconds = timeout_seconds
        # Names this process among those that probe writing.
        self._holder = secrets.token_hex(6)
        # Called with the error when a breaker opens; added by `listen`, never removed.
        self._listeners: list[Listener] = []
        # The loop that `open` was called on; None while closed.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reset()

    def _reset(self) -> None:
        self._reads = CircuitBreaker(RETRY_SECONDS)
        self._writes = CircuitBreaker(RETRY_SECONDS)
        # Whether `probe` is in use: then it alone calls through an open breaker.
        self._is_probed = False
        # When each `publish` began that has no answer yet.
        self._publishing: dict[object, float] = {}

    @property
    def is_away(self) -> bool:
        """Whether the last read or write failed, or a `publish` hangs (`HANG_SECONDS`)."""
        return self._reads.is_open or self.fails_writes

    @property
    def fails_writes(self) -> bool:
        """Whether the last write failed, or a `publish` hangs (`HANG_SECONDS`)."""
        if self._writes.is_open:
            return True
        if not self._publishing:
            return False
        return time.monotonic() - min(list(self._publishing.values())) > HANG_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether the running loop may read."""
        return self._loop is asyncio.get_running_loop()

    def listen(self, failed: Listener) -> None:
        """Call ``failed`` with the error each time a breaker opens, in the thread of that call.

        It must not raise or block.
        """
        self._listeners.append(failed)

    async def probe(self, *, thorough: bool) -> None:
        """Find out whether the backend answers, through open breakers. It must be open.

        Thorough: also whether it accepts a write and a subscription. Once a
        failure is known, only a thorough probe closes both breakers.

        Raises:
            BackendError: it does not.
        """
        self._is_probed = True
        try:
            await self._read(self._in_time(self._backend.tops([PROBE_TOPIC])))
        except BackendError as error:
            # A server that does not answer accepts no write either; no caller has to
            # wait for a deadline to find that out.
            self._failed(self._writes, error)
            raise
        if not thorough:
            return
        place = f"{PROBE_TOPIC}:{self._holder}"
        await asyncio.to_thread(
            self._write, lambda: self._backend.lease(place, self._holder, 1, PROBE_SECONDS)
        )
        await self._read(self._backend.subscribe(PROBE_TOPIC, _NullSink()))
        await self._backend.unsubscribe(PROBE_TOPIC)

    # Writes.

    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        if self._is_probed:
            self._check(self._reads)
            self._check(self._writes)
        call = object()
        self._publishing[call] = time.monotonic()
        try:
            return self._write(lambda: self._backend.publish(drafts))
        finally:
            # Not there any more if a fork came in between.
            self._publishing.pop(call, None)

    def claim(self, topic: str, job: str, token: str) -> int:
        self._check(self._writes)
        return self._write(lambda: self._backend.claim(topic, job, token))

    def delete(self, topic: str) -> bool:
        self._check(self._writes)
        return self._write(lambda: self._backend.delete(topic))

    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        self._check(self._writes)
        return self._write(lambda: self._backend.lease(name, holder, limit, seconds))

    def release(self, name: str, holder: str) -> bool:
        self._check(self._writes)
        return self._write(lambda: self._backend.release(name, holder))

    def close_writer(self) -> None:
        # After a fork the parent may have been changing any of this.
        self._reset()
        self._backend.close_writer()

    # Reads.

    async def open(self) -> None:
        # Through an open breaker: only the prober opens again.
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
        return await self._read(self._in_time(self._backend.snapshot(topic, after, history)))

    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        self._check_reading()
        return await self._read(self._in_time(self._backend.tops(topics)))

    async def status(self) -> Status:
        try:
            return await self._in_time(self._backend.status())
        except BackendUnavailable as error:
            return Status("", False, str(error))

    # Inside.

    def _check_reading(self) -> None:
        # Not noted as a failure: that nobody has opened it says nothing of the backend.
        if not self.is_open:
            raise BackendUnavailable("the backend is not open")
        self._check(self._reads)

    def _check(self, breaker: CircuitBreaker) -> None:
        if breaker.is_open and (self._is_probed or not breaker.admits(time.monotonic())):
            raise BackendUnavailable("the backend is away")

    def _write(self, call: Callable[[], Result]) -> Result:
        try:
            result = call()
        except BackendError as error:
            self._failed(self._writes, error)
            raise
        self._writes.succeeded()
        return result

    async def _read(self, call: Awaitable[Result]) -> Result:
        try:
            result = await call
        except BackendError as error:
            self._failed(self._reads, error)
            raise
        self._reads.succeeded()
        return result

    async def _in_time(self, call: Awaitable[Result]) -> Result:
        # A client library may retry on its own; the caller waits for one deadline only.
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await call
        except TimeoutError:
            raise BackendUnavailable(
                f"no answer in {self._timeout_seconds:g} s from the backend"
            ) from None

    def _failed(self, breaker: CircuitBreaker, error: BackendError) -> None:
        if breaker.failed(time.monotonic()):
            for listener in self._listeners:
                listener(error)


async def log_warnings(backend: GuardedBackend) -> bool:
    """Log what the backend's status warns of. Return False if the backend is not reachable."""
    status = await backend.status()
    if status.reachable:
        for warning in status.warnings:
            logger.warning("backend: %s", warning)
    return status.reachable


class _NullSink:
    """The sink of a probe."""

    def events(self, topic: str, epoch: str, prev: int, events: Sequence[Event]) -> None:
        pass

    def interrupted(self, topic: str) -> None:
        pass

    def gone(self, topic: str) -> None:
        pass
