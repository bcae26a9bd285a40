"""Takes the events of one sink from its queue, and gives them to its handler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from semantik_realtime.backoff import Backoff, spread
from semantik_realtime.core.sinks import (
    CLAIM_SPARE_SECONDS,
    TAKEOVER_SECONDS,
    Fate,
    Settlement,
    is_used_up,
    settle_failure,
)
from semantik_realtime.errors import BackendError, BackendRefused
from semantik_realtime.sink_hooks import SinkBackend, SinkEntry
from semantik_realtime.sinks.calls import HandlerCalls
from semantik_realtime.sinks.registry import RegisteredSink, RejectEvent, SinkEvent

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
"""Between two looks at an empty queue; varied by 15 %."""
BEAT_SECONDS = TAKEOVER_SECONDS / 6
"""Between two takes of nothing while all places are busy: who takes nothing counts as gone."""
LONGEST_SECONDS = 2.0
"""Between two looks while the backend refuses them. While it is away they are `POLL_SECONDS` apart:
it may come back empty, and what is appended before the sink is recorded again does not reach it."""
SETTLE_SECONDS = 0.5
"""How long a stop waits until the events of cancelled handlers are given back."""
LOG_SECONDS = 10.0
"""Between two log lines about the failures of a sink."""

Result = TypeVar("Result")


class CallBackend(Protocol):
    """Calls the backend in a thread."""

    async def __call__(self, call: Callable[[SinkBackend], Result]) -> Result: ...


class SinkWorker:
    """Takes the events of one sink."""

    def __init__(self, sink: RegisteredSink, call: CallBackend, limit: int) -> None:
        self._sink = sink
        self._call = call
        self._limit = limit
        self._encoded = sink.filter.encode()
        self._calls = HandlerCalls(sink)
        self._backoff = Backoff(POLL_SECONDS, LONGEST_SECONDS)
        # The events that are handled now. At most `RegisteredSink.at_once`.
        self._running: set[asyncio.Task[None]] = set()
        # Set when one of them has ended, and by `stop`.
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None
        # What was logged once: the server refuses sinks, another filter is recorded.
        self._logged: set[str] = set()
        # Of failures, and of dead letters: when the next one may be logged, on the monotonic clock,
        # and how many were not since the last one.
        self._log_at = [0.0, 0.0]
        self._unlogged = [0, 0]

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"semantik-realtime-{self._sink.name}")

    async def stop(self, seconds: float) -> None:
        self._is_stopping = True
        self._wake.set()
        deadline = time.monotonic() + seconds
        # A take that runs may still return events, which are then given back.
        tasks = {*self._running, *([self._task] if self._task is not None else [])}
        while tasks and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(tasks, timeout=left)
            tasks = {task for task in (*self._running, self._task) if task and not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=SETTLE_SECONDS)

    async def _run(self) -> None:
        is_recorded = False
        idle_seconds = 0.0
        # On the monotonic clock.
        beat_at = 0.0
        may_be_forgotten = is_forgotten = False
        while not self._is_stopping:
            try:
                if may_be_forgotten:
                    is_forgotten = await self._is_forgotten()
                    may_be_forgotten = False
                if not is_recorded:
                    is_recorded = await self._record(idle_seconds)
                    if not is_recorded:
                        self._log_replaced()
                        await self._pause(spread(TAKEOVER_SECONDS / 6))
                        continue
                    self._log_running(was_forgotten=is_forgotten)
                    is_forgotten = False
                wanted = self._sink.at_once - max(len(self._running), self._calls.threads)
                if wanted <= 0 and time.monotonic() < beat_at:
                    await self._pause(POLL_SECONDS)
                    continue
                taken = await self._take(max(wanted, 0))
                beat_at = time.monotonic() + BEAT_SECONDS
            except BackendRefused as error:
                self._log_refused(error)
                await self._pause(self._backoff.next_seconds())
                continue
            except BackendError:
                # The guard's listeners say so.
                await self._pause(spread(POLL_SECONDS))
                continue
            except Exception:
                # A fault of the hooks must not end the sink for good.
                if "failed" not in self._logged:
                    self._logged.add("failed")
                    logger.exception("sinks: failed sink=%s (logged once)", self._sink.name)
                await self._pause(self._backoff.next_seconds())
                continue
            self._backoff.reset()
            if taken is None:
                # Another version has replaced the filter, or the server has lost its memory.
                is_recorded, idle_seconds = False, TAKEOVER_SECONDS
                may_be_forgotten = True
                continue
            if self._is_stopping:
                await self._give_back(taken)
                return
            for entry in taken:
                self._begin(entry)
            if len(taken) < max(wanted, 1):
                await self._pause(spread(POLL_SECONDS))

    async def _is_forgotten(self) -> bool:
        """Return True if the backend has no record of the sink.

        Raises:
            BackendError: it does not answer.
        """
        try:
            found = await self._call(lambda backend: backend.sink_status())
        except BackendError:
            raise
        except Exception:
            # The runner logs it; the sink is to be recorded all the same.
            return False
        return self._sink.name not in {one.name for one in found}

    async def _record(self, idle_seconds: float) -> bool:
        return await self._call(
            lambda backend: backend.sink_open(
                self._sink.name, self._encoded, self._limit, idle_seconds
            )
        )

    async def _take(self, wanted: int) -> Sequence[SinkEntry] | None:
        seconds = self._sink.deadline_seconds + CLAIM_SPARE_SECONDS
        return await self._call(
            lambda backend: backend.sink_take(self._sink.name, self._encoded, wanted, seconds)
        )

    def _begin(self, entry: SinkEntry) -> None:
        task = asyncio.create_task(self._handle(entry))
        self._running.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("sinks: failed sink=%s", self._sink.name, exc_info=error)

    async def _handle(self, entry: SinkEntry) -> None:
        try:
            settlement = await self._outcome(entry)
        except asyncio.CancelledError:
            await self._give_back([entry])
            raise
        backoff = Backoff(POLL_SECONDS, 2.0)
        # Repeated until the claim is over; then the event is somebody else's.
        deadline = time.monotonic() + CLAIM_SPARE_SECONDS + self._sink.deadline_seconds
        while True:
            try:
                await self._call(lambda backend: backend.sink_settle(self._sink.name, [settlement]))
                return
            except BackendError as error:
                if self._is_stopping or time.monotonic() > deadline:
                    logger.warning(
                        "sinks: event comes again, its end was not stored sink=%s identity=%s "
                        "error=%s",
                        self._sink.name,
                        entry.identity,
                        error,
                    )
                    return
                await asyncio.sleep(backoff.next_seconds())

    async def _give_back(self, entries: Sequence[SinkEntry]) -> None:
        returned = [Settlement(one.id, one.attempt, Fate.RETURNED) for one in entries]
        # If that fails, they are another server's when the claim is over.
        with contextlib.suppress(BackendError):
            await self._call(lambda backend: backend.sink_settle(self._sink.name, returned))

    async def _outcome(self, entry: SinkEntry) -> Settlement:
        """Call the handler; return what becomes of the event."""
        sink, outcomes = self._sink, self._sink.counts.outcomes
        if is_used_up(entry.attempt, sink.attempts):
            error: BaseException = RuntimeError(
                "the processes that had it ended, or did not answer"
            )
        else:
            try:
                event = SinkEvent.of(entry)
            except (ValueError, msgspec.MsgspecError) as unreadable:
                error = RejectEvent(f"the event cannot be read: {unreadable}")
            else:
                try:
                    if not sink.filter.matches(event.topic, event.type):
                        # It was put there for a filter that this one has replaced, and is kept
                        # for the version that wants it.
                        raise RejectEvent("not of this version's filter")
                    await self._calls.call(event)
                except (Exception, SystemExit, asyncio.CancelledError) as raised:
                    if self._is_stopping and isinstance(raised, asyncio.CancelledError):
                        raise
                    error = raised
                else:
                    outcomes["handled"] += 1
                    return Settlement(entry.id, entry.attempt, Fate.HANDLED)
        settlement = settle_failure(
            entry.id,
            entry.attempt,
            sink.attempts,
            random.random(),  # noqa: S311
            f"{type(error).__name__}: {error}",
            is_final=isinstance(error, RejectEvent),
        )
        is_dead = settlement.fate is Fate.DEAD
        outcomes["dead" if is_dead else "retried"] += 1
        self._log_failure(entry, error, is_dead=is_dead)
        return settlement

    async def _pause(self, seconds: float) -> None:
        """Wait, or until a handler has ended or the runner stops."""
        self._wake.clear()
        if self._is_stopping:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _log_failure(self, entry: SinkEntry, error: BaseException, *, is_dead: bool) -> None:
        now = time.monotonic()
        if now < self._log_at[is_dead]:
            self._unlogged[is_dead] += 1
            return
        self._log_at[is_dead] = now + LOG_SECONDS
        more, self._unlogged[is_dead] = self._unlogged[is_dead], 0
        trace = None if isinstance(error, TimeoutError | RejectEvent) else error
        facts = (self._sink.name, entry.identity, entry.attempt, more)
        described = _describe(error, self._sink)
        if is_dead:
            logger.error(
                "sinks: dead letter sink=%s identity=%s attempt=%d more=%d error=%s",
                *facts,
                described,
                exc_info=trace,
            )
        else:
            logger.warning(
                "sinks: handler failed sink=%s identity=%s attempt=%d more=%d error=%s",
                *facts,
                described,
                exc_info=trace,
            )

    def _log_running(self, *, was_forgotten: bool) -> None:
        if was_forgotten:
            logger.warning(
                "sinks: the backend had forgotten this sink, it is recorded again sink=%s: events "
                "that were queued or appended before may never reach it",
                self._sink.name,
            )
        else:
            logger.info("sinks: running sink=%s", self._sink.name)

    def _log_replaced(self) -> None:
        if "replaced" not in self._logged:
            self._logged.add("replaced")
            logger.warning(
                "sinks: another version of this sink runs, with other types or topics sink=%s: "
                "nothing is handled here until it has been silent for %.0f s",
                self._sink.name,
                TAKEOVER_SECONDS,
            )

    def _log_refused(self, error: BackendRefused) -> None:
        if "refused" not in self._logged:
            self._logged.add("refused")
            logger.error(
                "sinks: refused, nothing is handled sink=%s error=%s (logged once)",
                self._sink.name,
                error,
            )


def _describe(error: BaseException, sink: RegisteredSink) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer within deadline_seconds={sink.deadline_seconds:g}"
    return f"{type(error).__name__}: {error}"
