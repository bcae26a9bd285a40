"""The one registered transport: the configured backend, and memory while it is away.

Reads and writes are told apart: a server that is full, or a replica, answers
the one and refuses the other. While a way is closed every call on it fails at
once, but for the one who finds out whether it is open again: on the web side
`GuardedBackend.probe`, in a worker the emitter, whose drafts must go.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from semantik_realtime.core.breaker import CircuitBreaker
from semantik_realtime.core.event import Cursor, Draft, Event, Receipt
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Sink, Snapshot, Status, Top, hookimpl

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""How often others may try a closed way where nobody probes."""
PROBE_TOPIC = "probe:0"
PROBE_SECONDS = 10.0
"""How long the place lives that a probe of writing takes."""

Answer = TypeVar("Answer")


class GuardedBackend:
    """The hooks of ``primary`` with a deadline, and ``memory`` for what has to wait.

    Args:
        primary: the configured backend.
        memory: a backend in this process; it holds what this process could not send.
        timeout_seconds: deadline of a look. Everything else has one of its own.
    """

    def __init__(self, primary: Any, memory: Any, timeout_seconds: float) -> None:
        self.primary = primary
        self.sheltered: Callable[[set[str]], object] | None = None
        """Called in the emitter's thread with the topics of drafts that have to wait."""
        self.has_warned = False
        """Whether `warn` has found out what there is to say."""
        self._memory = memory
        self._timeout_seconds = timeout_seconds
        self._holder = secrets.token_hex(6)
        self._shelters = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where the reader is open."""
        self._begin()

    def _begin(self) -> None:
        self._reading = CircuitBreaker(RETRY_SECONDS)
        self._writing = CircuitBreaker(RETRY_SECONDS)
        self._is_probed = False

    @property
    def is_away(self) -> bool:
        """Whether the last read or the last write failed."""
        return self._reading.is_away or self._writing.is_away

    @property
    def is_open(self) -> bool:
        """Whether the running loop may read."""
        return self._loop is asyncio.get_running_loop()

    async def probe(self, *, thorough: bool) -> None:
        """Find out whether the backend answers, whatever is known of it. It must be open.

        Thorough: also whether it takes a write, and feeds. Once a failure is
        known, nothing less will do.

        Raises:
            BackendError: it does not.
        """
        self._is_probed = True
        try:
            await self._note(self._in_time(self.primary.tops([PROBE_TOPIC])))
        except BackendError:
            # Who does not answer takes no write either, and nobody is to find that out by waiting.
            self._writing.failed(time.monotonic())
            raise
        if not thorough:
            return
        place = f"{PROBE_TOPIC}:{self._holder}"
        await asyncio.to_thread(
            self._write, self.primary.lease, place, self._holder, 1, PROBE_SECONDS
        )
        await self._note(self.primary.subscribe(PROBE_TOPIC, _Nobody()))
        await self.primary.unsubscribe(PROBE_TOPIC)

    async def warn(self) -> None:
        """Log what the backend warns of, once for each process; away: nothing happens."""
        status = await self.status()
        if status.reachable and not self.has_warned:
            self.has_warned = True
            for warning in status.warnings:
                logger.warning("backend: %s", warning)

    def shelter(self, drafts: Sequence[Draft]) -> None:
        """Show ``drafts``, which wait for the backend, to this process's own watchers."""
        if self.sheltered is None:
            return
        copies = []
        for draft in drafts:
            self._shelters += 1
            # Numbers of our own: those of the log are for the log.
            copies.append(
                msgspec.structs.replace(draft, producer=self._holder, number=self._shelters)
            )
        self._memory.publish(copies)
        self.sheltered({draft.topic for draft in drafts})

    async def shelter_of(self, topic: str) -> Snapshot:
        """What this process has published on ``topic`` since the backend went away."""
        snapshot: Snapshot = await self._memory.snapshot(topic, None, 0)
        return snapshot

    def forget_shelter(self) -> None:
        """The backend has it all."""
        self._memory.clear()

    # Writes.

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        if self._is_probed:
            self._admit(self._reading)
            self._admit(self._writing)
        receipts: Sequence[Receipt] = self._write(self.primary.publish, drafts)
        return receipts

    @hookimpl
    def claim(self, topic: str, job: str, token: str) -> int:
        return int(self._write_if_open(self.primary.claim, topic, job, token))

    @hookimpl
    def delete(self, topic: str) -> bool:
        return bool(self._write_if_open(self.primary.delete, topic))

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        return bool(self._write_if_open(self.primary.lease, name, holder, limit, seconds))

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        return bool(self._write_if_open(self.primary.release, name, holder))

    @hookimpl
    def close_writer(self) -> None:
        # Also after a fork: what the parent knew of the backend may have been half written.
        self._begin()
        self._memory.close_writer()
        self.primary.close_writer()

    # Reads.

    @hookimpl
    async def open(self) -> None:
        # Not gated: who opens is who probes.
        await self._note(self.primary.open())
        self._loop = asyncio.get_running_loop()

    @hookimpl
    async def close(self) -> None:
        self._loop = None
        await self.primary.close()

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        self._admit_reading()
        await self._note(self.primary.subscribe(topic, sink))

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        await self.primary.unsubscribe(topic)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        self._admit_reading()
        return await self._note(self._in_time(self.primary.snapshot(topic, after, history)))

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        self._admit_reading()
        return await self._note(self._in_time(self.primary.tops(topics)))

    @hookimpl
    async def status(self) -> Status:
        try:
            return await self._in_time(self.primary.status())
        except BackendUnavailable as error:
            return Status(type(self.primary).__name__, False, str(error))

    def _write_if_open(self, call: Callable[..., Answer], *args: Any) -> Answer:
        self._admit(self._writing)
        return self._write(call, *args)

    def _write(self, call: Callable[..., Answer], *args: Any) -> Answer:
        try:
            answer = call(*args)
        except BackendError:
            self._writing.failed(time.monotonic())
            raise
        self._writing.answered()
        return answer

    def _admit_reading(self) -> None:
        # That nobody has opened it says nothing of the backend.
        if not self.is_open:
            raise BackendUnavailable("the backend is not open")
        self._admit(self._reading)

    def _admit(self, way: CircuitBreaker) -> None:
        if way.is_away and (self._is_probed or not way.admits(time.monotonic())):
            raise BackendUnavailable("the backend is away")

    async def _note(self, answer: Awaitable[Answer]) -> Answer:
        try:
            got = await answer
        except BackendError:
            self._reading.failed(time.monotonic())
            raise
        self._reading.answered()
        return got

    async def _in_time(self, answer: Awaitable[Answer]) -> Answer:
        # A library may try again and again; whoever asked waits only once.
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await answer
        except TimeoutError:
            raise BackendUnavailable(
                f"no answer in {self._timeout_seconds:g} s from the backend"
            ) from None


class _Nobody:
    """A sink that listens to nothing."""

    def events(self, topic: str, epoch: str, prev: int, events: Sequence[Event]) -> None:
        pass

    def interrupted(self, topic: str) -> None:
        pass

    def gone(self, topic: str) -> None:
        pass
