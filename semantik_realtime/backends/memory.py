"""A backend in this process: for development, for tests, and while the broker is away."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import msgspec

from semantik_realtime.config import Settings
from semantik_realtime.core import fence
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
from semantik_realtime.core.resume import LogInfo, plan_sync
from semantik_realtime.hookspecs import Sink, Snapshot, Status, Top, hookimpl

MAX_TOPICS = 10_000
"""Topics kept, deleted ones too; the one that was quiet for longest goes first."""
MAX_BYTES = 256 * 2**20
"""Bytes of the events in logs and states. The topic written to last stays whatever it has: the
settings bound the size of one."""
MAX_PRODUCERS = 256


class _Job(msgspec.Struct, frozen=True):
    """Where a job stands; ``ended_at`` is the offset of its end, 0 while it runs."""

    standing: fence.AttemptState = fence.AttemptState()
    ended_at: int = 0
    token: str = ""


class _Log:
    """One topic."""

    def __init__(self, retention_events: int) -> None:
        self.epoch = secrets.token_hex(5)
        self.offset = 0
        self.chain = 0
        self.owner: str | None = None
        self.retention_events = retention_events
        self.entries: deque[tuple[Event, str, int]] = deque()
        self.states: dict[str, bytes] = {}
        self.bytes = 0
        """Of the events in entries and states."""
        self.jobs: dict[str, _Job] = {}
        """Those that changed longest ago come first."""
        self.numbers: OrderedDict[str, int] = OrderedDict()
        self.expires_at = 0.0
        self.deleted = False

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.offset, self.chain)

    @property
    def first(self) -> int:
        return self.entries[0][0].offset if self.entries else self.offset + 1

    def add(self, event: Event, producer: str, number: int) -> None:
        """Keep an event; the oldest makes room."""
        self.entries.append((event, producer, number))
        self.bytes += len(event.json)
        if len(self.entries) > self.retention_events:
            self.bytes -= len(self.entries.popleft()[0].json)

    def set_state(self, key: str, json: bytes) -> None:
        """Keep the last event with a state of a key."""
        self.drop_state(key)
        self.states[key] = json
        self.bytes += len(json)

    def drop_state(self, key: str) -> None:
        """Forget a key."""
        self.bytes -= len(self.states.pop(key, b""))


_NEW_JOB = _Job()


class MemoryBackend:
    """The contract within one process. Nothing survives it."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._logs: OrderedDict[str, _Log] = OrderedDict()
        """The one that was quiet for longest comes first."""
        self._bytes = 0
        self._sinks: dict[str, Sink] = {}
        self._leases: dict[str, dict[str, float]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        receipts: list[Receipt] = []
        with self._lock:
            batches: dict[str, tuple[str, int, list[Event]]] = {}
            for draft in drafts:
                log = self._log(draft.topic)
                before, size = log.offset, log.bytes
                receipt, event = self._append(log, draft)
                self._bytes += log.bytes - size
                receipts.append(receipt)
                if event is not None:
                    batches.setdefault(draft.topic, (log.epoch, before, []))[2].append(event)
            for topic, (epoch, prev, events) in batches.items():
                self._tell(topic, "events", epoch, prev, events)
            self._make_room()
        return receipts

    @hookimpl
    def claim(self, topic: str, job: str, token: str) -> int:
        with self._lock:
            log = self._log(topic)
            if log.deleted:
                return 0
            known = log.jobs.get(job, _NEW_JOB)
            if known.token == token and known.standing.attempt:
                return known.standing.attempt
            attempt = known.standing.attempt + 1
            self._stand(log, job, _Job(fence.AttemptState(attempt), 0, token))
            log.expires_at = self._clock() + self._settings.retention_seconds
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
            log = self._known(topic)
            if log is None:
                return Snapshot(None, deleted=topic in self._logs and self._logs[topic].deleted)
            info = LogInfo(log.epoch, log.offset, log.chain, log.first)
            there = None
            if after is not None and log.first <= after.offset <= log.offset:
                there = log.entries[after.offset - log.first][0].chain
            reason = plan_sync(after, info, there)
            events = [entry[0] for entry in log.entries]
            if reason is None:
                assert after is not None
                tail = events[max(0, after.offset + 1 - log.first) :]
                return Snapshot(log.cursor, log.owner, None, {}, tail)
            newest = events[max(0, len(events) - history) :]
            return Snapshot(log.cursor, log.owner, reason, dict(log.states), newest)

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        with self._lock:
            logs = ((topic, self._known(topic)) for topic in topics)
            return {topic: Top(log.cursor, log.owner) for topic, log in logs if log}

    @hookimpl
    def delete(self, topic: str) -> bool:
        with self._lock:
            known = self._known(topic) is not None
            self._remove(topic)
            log = self._logs[topic] = _Log(self._settings.retention_events)
            log.deleted = True
            log.expires_at = self._clock() + self._settings.grace_seconds
            self._make_room()
            self._tell(topic, "gone")
            return known

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
            ["only this process sees these events, and they end with it"],
        )

    def clear(self) -> None:
        """Forget every topic, without a word to the sinks."""
        with self._lock:
            self._logs.clear()
            self._bytes = 0

    def _append(self, log: _Log, draft: Draft) -> tuple[Receipt, Event | None]:
        if log.deleted:
            return Receipt(Outcome.CLOSED), None
        if draft.number <= log.numbers.get(draft.producer, 0):
            return Receipt(Outcome.DUPLICATE, self._position(log, draft)), None
        if len(draft.body) > self._settings.max_event_bytes:
            return Receipt(Outcome.TOO_BIG), None
        job = _NEW_JOB
        standing = job.standing
        if draft.job is not None:
            job = log.jobs.get(draft.job, _NEW_JOB)
            verdict = fence.check_fence(job.standing, draft.attempt, draft.terminal)
            if isinstance(verdict, fence.Refusal):
                return Receipt(Outcome(verdict.value)), None
            standing = verdict
        if draft.change is StateChange.SET and draft.key not in log.states:
            if len(log.states) >= self._settings.max_keys and not self._forget_ended(log):
                return Receipt(Outcome.TOO_MANY_KEYS), None
        log.offset += 1
        log.chain = link(log.chain, draft.digest)
        event = Event(log.offset, log.chain, with_offset(draft.body, log.offset))
        log.add(event, draft.producer, draft.number)
        if draft.change is StateChange.SET:
            log.set_state(draft.key, event.json)
        elif draft.change is StateChange.DROP:
            log.drop_state(draft.key)
        if draft.job is not None and (standing != job.standing or draft.job not in log.jobs):
            ended_at = log.offset if draft.terminal else 0
            self._stand(log, draft.job, _Job(standing, ended_at, job.token))
        log.numbers[draft.producer] = draft.number
        log.numbers.move_to_end(draft.producer)
        if len(log.numbers) > MAX_PRODUCERS:
            log.numbers.popitem(last=False)
        if draft.owner is not None:
            log.owner = log.owner or draft.owner
        ended = draft.terminal and draft.topic == f"job:{draft.job}"
        log.expires_at = self._clock() + (
            self._settings.grace_seconds if ended else self._settings.retention_seconds
        )
        self._logs.move_to_end(draft.topic)
        return Receipt(Outcome.APPENDED, log.cursor), event

    @staticmethod
    def _position(log: _Log, draft: Draft) -> Cursor | None:
        for event, producer, number in reversed(log.entries):
            if producer == draft.producer and number == draft.number:
                return Cursor(log.epoch, event.offset, event.chain)
        return None

    def _forget_ended(self, log: _Log) -> bool:
        # A quarter at once, longest ended first: making room for one costs a walk over all.
        ended = sorted(
            (job.ended_at, name)
            for name, job in log.jobs.items()
            if job.ended_at and name in log.states
        )
        for _, name in ended[: max(1, self._settings.max_keys // 4)]:
            del log.jobs[name]
            log.drop_state(name)
        return len(log.states) < self._settings.max_keys

    def _stand(self, log: _Log, name: str, job: _Job) -> None:
        log.jobs.pop(name, None)
        log.jobs[name] = job
        limit = self._settings.max_keys
        excess = len(log.jobs) - len(log.states) - limit
        if excess > 0:
            # Jobs without a state (deleted, or only claimed) take no key, so no key ever makes
            # room for them: the oldest go.
            stateless = [name for name in log.jobs if name not in log.states]
            for old in stateless[: excess + limit // 4]:
                del log.jobs[old]

    def _known(self, topic: str) -> _Log | None:
        log = self._logs.get(topic)
        if log is not None and log.expires_at <= self._clock():
            self._remove(topic)
            return None
        return None if log is None or log.deleted or log.offset == 0 else log

    def _log(self, topic: str) -> _Log:
        log = self._logs.get(topic)
        if log is None or log.expires_at <= self._clock():
            self._remove(topic)
            log = self._logs[topic] = _Log(self._settings.retention_events)
            log.expires_at = self._clock() + self._settings.retention_seconds
        return log

    def _remove(self, topic: str) -> None:
        log = self._logs.pop(topic, None)
        if log is not None:
            self._bytes -= log.bytes

    def _make_room(self) -> None:
        """Let go of what is too much, and of what has expired, but only where it is oldest."""
        now = self._clock()
        while len(self._logs) > 1:
            topic, oldest = next(iter(self._logs.items()))
            if (
                len(self._logs) <= MAX_TOPICS
                and self._bytes <= MAX_BYTES
                and oldest.expires_at > now
            ):
                break
            self._remove(topic)

    def _tell(self, topic: str, what: str, *args: object) -> None:
        sink, loop = self._sinks.get(topic), self._loop
        if sink is None or loop is None or loop.is_closed():
            return
        # Publishers may be in any thread; a sink hears its topic in the order of the log
        # because the lock is held here.
        loop.call_soon_threadsafe(getattr(sink, what), topic, *args)
