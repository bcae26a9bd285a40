"""A backend in the memory of one process: for development and tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from semantik_realtime.backends.memory_holders import Holders
from semantik_realtime.backends.memory_log import NEW_JOB, Job, Log
from semantik_realtime.backends.memory_sink_hooks import MemorySinkHooks
from semantik_realtime.backends.memory_sinks import MemorySinks
from semantik_realtime.config import Settings
from semantik_realtime.core.event import (
    Cursor,
    Draft,
    Event,
    Outcome,
    Receipt,
    StateChange,
    link,
    with_offset,
)
from semantik_realtime.core.fence import AttemptState, Refusal, check_fence
from semantik_realtime.core.holding import Holding
from semantik_realtime.core.ownership import OwnerChange, check_owner
from semantik_realtime.core.resume import LogInfo, check_replay, plan_sync, take_bytes
from semantik_realtime.core.retention import expires_at, own_job
from semantik_realtime.hookspecs import Page, Sink, Snapshot, Status, Top, hookimpl

MAX_LOGS = 10_000
"""Topics that are kept, deleted ones too; the one that changed longest ago is dropped first."""
MAX_LOG_BYTES = 256 * 2**20
"""Bytes of the events in all logs and states. The topic that changed last is never dropped; the
settings bound its size."""
SWEEP_SECONDS = 60.0
"""Least time between two walks over all topics for those that have expired."""

Batch = tuple[Cursor, list[Event]]
"""The position before the first event, and the events."""


class MemoryBackend(MemorySinkHooks):
    """A `semantik_realtime.hookspecs.Backend` whose topics live and end with this process.

    Args:
        settings: its limits and times; it has no URL.
        clock: the time in seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        # Around every read and write of the logs, leases and holders. A sink is scheduled under it
        # too, so that it receives the events of a topic in the order of the log.
        self._lock = threading.Lock()
        # The topic that changed longest ago comes first.
        self._logs: OrderedDict[str, Log] = OrderedDict()
        # The sum of the logs' bytes.
        self._bytes = 0
        # When the topics that have expired are dropped next.
        self._sweep_at = 0.0
        # The sink of each subscribed topic; cleared by `close`.
        self._sinks: dict[str, Sink] = {}
        # For each name the holders of its places, with the time when each place is free again.
        self._leases: dict[str, dict[str, float]] = {}
        self._holders = Holders()
        # Of the sinks of the application.
        self._queues = MemorySinks()
        # The loop that `open` was called on, where sinks are called; None while closed.
        self._loop: asyncio.AbstractEventLoop | None = None

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        receipts: list[Receipt] = []
        with self._lock:
            # By topic and epoch.
            batches: dict[tuple[str, str], Batch] = {}
            # The topic, job and attempt of the drafts that begin an attempt and are stale.
            stale: set[tuple[str, str | None, int | None]] = set()
            for draft in drafts:
                attempt = (draft.topic, draft.job, draft.attempt)
                if attempt in stale:
                    receipts.append(Receipt(Outcome.STALE))
                    continue
                log = self._open_log(draft.topic)
                size, before = log.bytes, log.cursor
                receipt, event = self._append(log, draft)
                self._bytes += log.bytes - size
                receipts.append(receipt)
                if draft.begins and receipt.outcome is Outcome.STALE:
                    stale.add(attempt)
                if event is not None:
                    prev = before if before.epoch == log.epoch else Cursor(log.epoch, 0, 0)
                    new: Batch = (prev, [])
                    batches.setdefault((draft.topic, log.epoch), new)[1].append(event)
                    self._queues.offer(draft, event, log.epoch, log.owner, self._clock())
            for (topic, _), batch in batches.items():
                if (sink := self._sinks.get(topic)) is not None:
                    self._schedule(sink.events, topic, *batch)
            self._make_room()
        return receipts

    @hookimpl
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        with self._lock:
            log = self._open_log(topic)
            if log.deleted:
                return 0
            owner_change = check_owner(log.owner, log.offset, owner)
            if owner_change is OwnerChange.FOREIGN:
                return -1
            if owner_change is OwnerChange.FIRST:
                log.owner = owner
            known = log.jobs.get(job, NEW_JOB)
            if known.token == token and known.state.attempt:
                return known.state.attempt
            attempt = known.state.attempt + 1
            self._set_job(log, job, Job(AttemptState(attempt), 0, token))
            self._set_expiry(topic, log, ends=False)
            self._logs.move_to_end(topic)
            self._make_room()
            return attempt

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        self._sinks[topic] = sink

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        self._sinks.pop(topic, None)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        with self._lock:
            log = self._find_log(topic)
            if log is None:
                return Snapshot(None, deleted=topic in self._logs and self._logs[topic].deleted)
            info = LogInfo(log.epoch, log.offset, log.chain, log.first)
            there = None
            if after is not None and log.first <= after.offset <= log.offset:
                there = log.entries[after.offset - log.first][0].chain
            reason = plan_sync(after, info, there)
            max_bytes = self._settings.max_read_bytes
            if reason is None:
                assert after is not None
                replay = take_bytes(log.after(after.offset), max_bytes)
                reason = check_replay(after, replay, log.cursor)
                if reason is None:
                    return Snapshot(log.cursor, log.owner, None, {}, replay)
            newest = take_bytes(log.newest(history), max_bytes)[::-1]
            return Snapshot(log.cursor, log.owner, reason, dict(log.states), newest)

    @hookimpl
    async def page(self, topic: str, after: int, limit: int) -> Page:
        with self._lock:
            log = self._find_log(topic)
            if log is None:
                return Page(None)
            events = take_bytes(islice(log.after(after), limit), self._settings.max_read_bytes)
            more = bool(events) and events[-1].offset < log.offset
            return Page(log.cursor, events, more)

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        with self._lock:
            logs = ((topic, self._find_log(topic)) for topic in topics)
            return {topic: Top(log.cursor, log.owner) for topic, log in logs if log}

    @hookimpl
    def delete(self, topic: str) -> bool:
        with self._lock:
            was_known = self._find_log(topic) is not None
            self._remove(topic)
            log = self._logs[topic] = Log(self._settings.retention_events)
            log.deleted = True
            log.expires_at = self._clock() + self._settings.grace_seconds
            self._make_room()
            if (sink := self._sinks.get(topic)) is not None:
                self._schedule(sink.gone, topic)
            return was_known

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        with self._lock:
            now = self._clock()
            held = {
                other: until for other, until in self._leases.get(name, {}).items() if until > now
            }
            granted = holder in held or len(held) < limit
            if granted:
                held[holder] = now + seconds
            self._leases[name] = held
            return granted

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        with self._lock:
            held = self._leases.get(name, {})
            until = held.pop(holder, None)
            if not held:
                self._leases.pop(name, None)
            return until is not None and until > self._clock()

    @hookimpl
    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        with self._lock:
            return self._holders.hold(holder, jobs, ended, seconds, self._clock())

    @hookimpl
    def overdue(self, seconds: float) -> list[Holding]:
        with self._lock:
            return self._holders.overdue(seconds, self._clock())

    @hookimpl
    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()

    @hookimpl
    async def close(self) -> None:
        self._loop = None
        self._sinks.clear()

    @hookimpl
    def close_writer(self) -> None:
        # A fork may have happened while another thread held the lock.
        self._lock = threading.Lock()

    @hookimpl
    async def status(self) -> Status:
        return Status(
            "memory",
            True,
            "this process",
            ["only this process sees these events, and they are lost when it ends"],
        )

    def _append(self, log: Log, draft: Draft) -> tuple[Receipt, Event | None]:
        if log.deleted:
            return Receipt(Outcome.CLOSED), None
        if draft.number <= log.numbers.get(draft.producer, (0, 0.0))[0]:
            return Receipt(Outcome.DUPLICATE, self._position(log, draft)), None
        owner_change = check_owner(log.owner, log.offset, draft.owner)
        if owner_change is OwnerChange.FOREIGN:
            return Receipt(Outcome.FOREIGN_OWNER), None
        if len(draft.body) > self._settings.max_event_bytes:
            return Receipt(Outcome.TOO_BIG), None
        job = NEW_JOB
        state = job.state
        if draft.job is not None:
            job = log.jobs.get(draft.job, NEW_JOB)
            verdict = check_fence(job.state, draft.attempt, draft.terminal, draft.begins)
            if isinstance(verdict, Refusal):
                return Receipt(Outcome(verdict.value)), None
            state = verdict
        if owner_change is OwnerChange.BEGIN:
            log.begin_again()
        if draft.change is StateChange.SET and draft.key not in log.states:
            if len(log.states) >= self._settings.max_keys and not self._drop_ended(log):
                return Receipt(Outcome.TOO_MANY_KEYS), None
        log.offset += 1
        log.chain = link(log.chain, draft.digest)
        event = Event(log.offset, log.chain, with_offset(draft.body, log.offset))
        log.add(event, draft.producer, draft.number)
        if draft.change is StateChange.SET:
            log.set_state(draft.key, event.json)
        elif draft.change is StateChange.DROP:
            log.drop_state(draft.key)
        if draft.job is not None and (state != job.state or draft.job not in log.jobs):
            ended_at = log.offset if draft.terminal else 0
            self._set_job(log, draft.job, Job(state, ended_at, job.token))
        log.note_number(draft.producer, draft.number, self._clock())
        log.owner = log.owner or draft.owner
        if draft.due_at is not None:
            log.due_at = max(log.due_at or 0.0, draft.due_at)
        ends = draft.terminal and draft.job is not None and draft.job == own_job(draft.topic)
        self._set_expiry(draft.topic, log, ends=ends)
        self._logs.move_to_end(draft.topic)
        return Receipt(Outcome.APPENDED, log.cursor), event

    def _set_expiry(self, topic: str, log: Log, *, ends: bool) -> None:
        own = own_job(topic)
        is_open = own in log.states and not log.jobs.get(own or "", NEW_JOB).state.ended
        now = self._clock()
        # The clock may be any, and the job's time is one of the day.
        due_at = None if log.due_at is None else now + (log.due_at - time.time())
        log.expires_at = expires_at(
            now, self._settings.retention, ends=ends, is_open=is_open, due_at=due_at
        )

    @staticmethod
    def _position(log: Log, draft: Draft) -> Cursor | None:
        """Return the position of the event that was appended for ``draft``, if it is kept."""
        for event, producer, number in reversed(log.entries):
            if producer == draft.producer and number == draft.number:
                return Cursor(log.epoch, event.offset, event.chain)
        return None

    def _drop_ended(self, log: Log) -> bool:
        """Drop the states of the jobs that ended longest ago. Return True if a key has room."""
        # A quarter of the limit at once, because it takes a walk over all jobs.
        ended = sorted(
            (job.ended_at, name)
            for name, job in log.jobs.items()
            if job.ended_at and name in log.states
        )
        for _, name in ended[: max(1, self._settings.max_keys // 4)]:
            del log.jobs[name]
            log.drop_state(name)
        return len(log.states) < self._settings.max_keys

    def _set_job(self, log: Log, name: str, job: Job) -> None:
        log.jobs.pop(name, None)
        log.jobs[name] = job
        limit = self._settings.max_keys
        excess = len(log.jobs) - len(log.states) - limit
        if excess > 0:
            # Jobs without a state (deleted, or only claimed) have no key, so the limit of keys
            # does not bound them: drop the oldest.
            stateless = [name for name in log.jobs if name not in log.states]
            for old in stateless[: excess + limit // 4]:
                del log.jobs[old]

    def _find_log(self, topic: str) -> Log | None:
        """Return the log of a topic that has events."""
        log = self._logs.get(topic)
        if log is not None and log.expires_at <= self._clock():
            self._remove(topic)
            return None
        return None if log is None or log.deleted or log.offset == 0 else log

    def _open_log(self, topic: str) -> Log:
        """Return the log of a topic, a new one if it is unknown or has expired."""
        log = self._logs.get(topic)
        if log is None or log.expires_at <= self._clock():
            self._remove(topic)
            log = self._logs[topic] = Log(self._settings.retention_events)
            log.expires_at = self._clock() + self._settings.retention_seconds
        return log

    def _remove(self, topic: str) -> None:
        log = self._logs.pop(topic, None)
        if log is not None:
            self._bytes -= log.bytes

    def _make_room(self) -> None:
        """Drop topics that have expired, from time to time, and the oldest beyond the bounds."""
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            for topic in [name for name, log in self._logs.items() if log.expires_at <= now]:
                self._remove(topic)
        while len(self._logs) > 1 and (len(self._logs) > MAX_LOGS or self._bytes > MAX_LOG_BYTES):
            self._remove(next(iter(self._logs)))

    def _schedule(self, call: Callable[..., None], *args: object) -> None:
        """Schedule a call of a sink on its loop. From any thread, under the lock."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)
