"""What the log of a topic amounts to, and what an append adds to it. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from zlib import crc32

import msgspec
from semantik_realtime.core import fence
from semantik_realtime.core.event import (
    Cursor,
    Draft,
    Outcome,
    Receipt,
    StateChange,
    link,
    with_offset,
)
from semantik_realtime.core.ownership import OwnerChange, check_owner
from semantik_realtime.core.retention import expires_at

from semantik_realtime_nats.plan import Limits, Plan, Stale
from semantik_realtime_nats.records import (
    AttemptClaimed,
    EventRun,
    JobForgotten,
    LogHeader,
    LogMessage,
)

MAX_PRODUCERS = 4096
"""Whose last number a topic remembers: 80 kB of a checkpoint. By count: messages have no time."""
PAGE_EVENTS = 64
"""Least events between two entries of the index from offsets to the stream's sequences."""
CHECKPOINT_EVENTS = 64
"""Least events between two checkpoints; a reader folds about as many of the log."""
MAX_FORGOTTEN_BYTES = 5000
"""Most bytes of one header for the jobs that it forgets: room for about a hundred."""

_encode = msgspec.json.Encoder().encode


class Gap(Exception):
    """A message does not follow the ledger: others are missing before it, or the epoch is new."""


class JobAttempt(msgspec.Struct, array_like=True, frozen=True):
    """The newest attempt of a job."""

    attempt: int = 0
    """0: the job is queued."""
    ended_at: int = 0
    """The offset of the attempt's terminal event; 0 while it runs."""
    token: str = ""
    """Of the claim that gave the attempt its number; empty without a claim."""


class Ledger(msgspec.Struct):
    """Everything that the fence and readers need to know of a topic: the fold of its log.

    A writer plans each message on a `copy`, and keeps the copy, after `commit`, if the message
    was stored. A reader calls `apply` with each message. Both arrive at the same ledger.
    """

    epoch: str
    seq: int = 0
    """The stream's sequence of the last message; 0: there is none in this epoch."""
    offset: int = 0
    chain: int = 0
    owner: str | None = None
    numbers: dict[str, int] = {}
    """The last number of each producer; those that wrote longest ago come first."""
    jobs: dict[str, JobAttempt] = {}
    """The newest attempt of each job; those that changed longest ago come first."""
    keys: dict[str, int] = {}
    """For each key with a state, the offset of the event that has it."""
    pages: list[tuple[int, int]] = []
    """The index of the log: after an offset begins the message with this sequence."""

    # What follows is not part of a checkpoint.
    expected_seq: int = 0
    """The sequence of the log's last message of any epoch: the condition of the next append."""
    changed: dict[str, bytes] = {}
    """For each key that changed since the checkpoint, the event with its state."""
    checkpoint_offset: int = 0
    """The offset of the last checkpoint; 0 without one."""
    due_at: float | None = None
    """When the topic's own job is to start, as far as drafts say so while it has not ended."""
    alive_until: float = float("inf")
    """When the topic expires, by the server's clock in seconds since 1970."""
    deleted: bool = False

    @classmethod
    def begin(cls, expected_seq: int) -> Ledger:
        """Return the empty ledger of a new epoch, to be appended after ``expected_seq``."""
        return cls(secrets.token_hex(5), expected_seq=expected_seq)

    @classmethod
    def restore(cls, checkpoint: bytes) -> Ledger:
        """Return the ledger that `checkpoint` encoded."""
        ledger = _decode(checkpoint)
        ledger.expected_seq, ledger.checkpoint_offset = ledger.seq, ledger.offset
        return ledger

    def checkpoint(self, retention_events: int) -> bytes:
        """Encode the ledger, without the states in `changed`: store those first.

        Removes the index entries of messages that are over the retention.
        """
        first = self.first_offset(retention_events)
        while len(self.pages) > 1 and self.pages[1][0] < first:
            del self.pages[0]
        return _encode({field: getattr(self, field) for field in _CHECKPOINT_FIELDS})

    def copy(self) -> Ledger:
        """Return an independent copy."""
        return msgspec.structs.replace(
            self,
            numbers=self.numbers.copy(),
            jobs=self.jobs.copy(),
            keys=self.keys.copy(),
            pages=self.pages.copy(),
            changed=self.changed.copy(),
        )

    @property
    def cursor(self) -> Cursor:
        """The position after the last event."""
        return Cursor(self.epoch, self.offset, self.chain)

    def first_offset(self, retention_events: int) -> int:
        """Return the oldest offset that readers get, by the retention and by what is stored."""
        stored = self.pages[0][0] + 1 if self.pages else self.offset + 1
        return max(stored, self.offset - retention_events + 1)

    def find_seq(self, offset: int) -> int:
        """Return a sequence to read from, to get all stored events after ``offset``."""
        found = 0
        for before, seq in self.pages:
            if before > offset and found:
                break
            found = seq
        return found

    def needs_checkpoint(self) -> bool:
        """Return True if a checkpoint is due: the last one is `CHECKPOINT_EVENTS` old."""
        return self.offset - self.checkpoint_offset >= CHECKPOINT_EVENTS

    def mark_checkpoint(self) -> None:
        """A checkpoint of the ledger as it is now is stored, and so are the states in `changed`."""
        self.checkpoint_offset = self.offset
        self.changed.clear()

    def apply(self, message: LogMessage) -> None:
        """Fold the next message.

        Raises:
            Gap: it is not the next one. The ledger is unchanged.
        """
        header = message.header
        if (header.epoch, header.prev_seq, header.offset) != (self.epoch, self.seq, self.offset):
            raise Gap(f"sequence {message.seq} follows {header.prev_seq}, not {self.seq}")
        bodies = iter(message.bodies)
        for fact in header.facts:
            if isinstance(fact, EventRun):
                for place in range(fact.count):
                    self._add(fact, fact.number + place, next(bodies))
            elif isinstance(fact, AttemptClaimed):
                self._set_attempt(fact.job, JobAttempt(fact.attempt, 0, fact.token))
            else:
                self._forget(fact.job)
        self.owner, self.deleted = header.owner, header.deleted
        self.commit(header, message.seq, message.stored_at)

    def commit(self, header: LogHeader, seq: int, stored_at: float) -> None:
        """The message with ``header``, whose facts are part of the ledger, is stored as ``seq``."""
        self.seq = self.expected_seq = seq
        self.alive_until = header.expires_at(stored_at)
        self.due_at = header.due_at
        if not self.pages or header.offset - self.pages[-1][0] >= PAGE_EVENTS:
            self.pages.append((header.offset, seq))

    def plan_append(self, drafts: Sequence[Draft], limits: Limits, stale: Stale = ()) -> Plan:
        """Add the drafts that the fence accepts, and return the message to append."""
        header = self._header()
        receipts: list[Receipt] = []
        bodies: list[bytes] = []
        run: EventRun | None = None
        made_room = ends = False
        stale_attempts = set(stale)
        for draft in drafts:
            if (draft.job, draft.attempt) in stale_attempts:
                receipts.append(_REFUSALS[Outcome.STALE])
                continue
            job = _NEW_JOB if draft.job is None else self.jobs.get(draft.job, _NEW_JOB)
            refusal = self._check(draft, job, limits)
            owner_change = check_owner(self.owner, self.offset, draft.owner)
            if refusal is None and owner_change is OwnerChange.BEGIN:
                if header.facts:
                    # A message belongs to one epoch.
                    break
                header = self._begin_again(draft.job, job)
            is_new = draft.change is StateChange.SET and draft.key not in self.keys
            if refusal is None and is_new and len(self.keys) >= limits.max_keys:
                if made_room:
                    break
                forgotten = self._make_room(limits.max_keys)
                if forgotten:
                    header.facts.extend(forgotten)
                    run, made_room = None, True
                    if len(self.keys) >= limits.max_keys:
                        break
                else:
                    refusal = Outcome.TOO_MANY_KEYS
            if refusal is not None:
                if draft.begins and refusal is Outcome.STALE:
                    stale_attempts.add((draft.job, draft.attempt))
                receipts.append(_REFUSALS[refusal])
                continue
            attempt = job.attempt if draft.attempt is None else draft.attempt
            if run is not None and run.continues_with(draft, attempt):
                run.count += 1
            else:
                run = EventRun(
                    1,
                    draft.producer,
                    draft.number,
                    draft.key,
                    draft.change,
                    draft.job,
                    attempt,
                    draft.terminal,
                )
                header.facts.append(run)
            self._add(run, draft.number, draft.body)
            if not made_room and (forgotten := self._forget_stateless(limits.max_keys)):
                header.facts.extend(forgotten)
                run, made_room = None, True
            bodies.append(draft.body)
            receipts.append(Receipt(Outcome.APPENDED, self.cursor))
            self.owner = self.owner or draft.owner
            ends = draft.terminal and draft.job is not None and draft.job == limits.own_job
            if draft.due_at is not None:
                self.due_at = max(self.due_at or 0.0, draft.due_at)
        return self._plan(header, bodies, receipts, limits, ends)

    def plan_claim(
        self, job: str, token: str, owner: str | None, limits: Limits
    ) -> tuple[int, Plan | None]:
        """Return the number of the job's next attempt, and the message that claims it.

        The message is None if ``token`` has claimed the newest attempt already; if the topic is
        deleted, then the number is 0; or if it belongs to another owner, then it is -1.
        """
        if self.deleted:
            return 0, None
        owner_change = check_owner(self.owner, self.offset, owner)
        if owner_change is OwnerChange.FOREIGN:
            return -1, None
        if owner_change is OwnerChange.FIRST:
            self.owner = owner
        known = self.jobs.get(job, _NEW_JOB)
        if known.token == token and known.attempt:
            return known.attempt, None
        claimed = AttemptClaimed(job, known.attempt + 1, token)
        self._set_attempt(job, JobAttempt(claimed.attempt, 0, token))
        header = self._header()
        header.facts.append(claimed)
        header.facts.extend(self._forget_stateless(limits.max_keys))
        return claimed.attempt, self._plan(header, (), [], limits)

    def plan_delete(self, limits: Limits) -> Plan:
        """Return the message that deletes the topic. The ledger is unchanged."""
        header = LogHeader(self.epoch, 0, 0, 0, 0, limits.retention.grace_seconds, deleted=True)
        return Plan(header, header.encode(()), [])

    def _begin_again(self, name: str | None, job: JobAttempt) -> LogHeader:
        """Begin a new epoch, in which only the attempt of the job ``name`` is known.

        Return the header of its first message.
        """
        begun = Ledger.begin(self.expected_seq)
        for field in begun.__struct_fields__:
            setattr(self, field, getattr(begun, field))
        header = self._header()
        if name is not None and job.attempt:
            header.facts.append(AttemptClaimed(name, job.attempt, job.token))
            self._set_attempt(name, JobAttempt(job.attempt, 0, job.token))
        return header

    def _header(self) -> LogHeader:
        return LogHeader(self.epoch, self.seq, self.offset, self.chain, self.chain, 0.0, facts=[])

    def _plan(
        self,
        header: LogHeader,
        bodies: Sequence[bytes],
        receipts: list[Receipt],
        limits: Limits,
        ends: bool = False,
    ) -> Plan:
        if not header.facts:
            return Plan(header, None, receipts)
        header.last_chain, header.owner = self.chain, self.owner
        own = limits.own_job
        is_open = own in self.keys and not self.jobs.get(own or "", _NEW_JOB).ended_at
        header.keep_seconds = expires_at(0.0, limits.retention, ends=ends, is_open=is_open)
        header.due_at = self.due_at if is_open else None
        return Plan(header, header.encode(bodies), receipts)

    def _check(self, draft: Draft, job: JobAttempt, limits: Limits) -> Outcome | None:
        """Return why the draft is refused; None if it is accepted."""
        if self.deleted:
            return Outcome.CLOSED
        if draft.number <= self.numbers.get(draft.producer, 0):
            return Outcome.DUPLICATE
        if check_owner(self.owner, self.offset, draft.owner) is OwnerChange.FOREIGN:
            return Outcome.FOREIGN_OWNER
        if len(draft.body) > limits.max_event_bytes:
            return Outcome.TOO_BIG
        if draft.job is not None:
            state = fence.AttemptState(job.attempt, job.ended_at > 0)
            verdict = fence.check_fence(state, draft.attempt, draft.terminal, draft.begins)
            if isinstance(verdict, fence.Refusal):
                return Outcome(verdict.value)
        return None

    def _make_room(self, max_keys: int) -> list[JobForgotten]:
        """Forget ended jobs; none if even all of them are not enough for a new key."""
        ended = sorted(
            (job.ended_at, name)
            for name, job in self.jobs.items()
            if job.ended_at and name in self.keys
        )
        if len(self.keys) - len(ended) >= max_keys:
            return []
        # A quarter at once, longest ended first: each time costs a pass over all jobs.
        return self._forget_first([name for _, name in ended[: max(1, max_keys // 4)]])

    def _forget_stateless(self, max_jobs: int) -> list[JobForgotten]:
        """Forget the oldest jobs without a state if there are too many.

        They have no key, so `_make_room` never removes them.
        """
        excess = len(self.jobs) - len(self.keys) - max_jobs
        if excess <= 0:
            return []
        stateless = [name for name in self.jobs if name not in self.keys]
        return self._forget_first(stateless[: excess + max_jobs // 4])

    def _forget_first(self, names: Sequence[str]) -> list[JobForgotten]:
        """Forget as many of ``names`` as one header has room for."""
        facts: list[JobForgotten] = []
        size = 0
        for name in names:
            fact = JobForgotten(name)
            size += len(_encode(fact)) + 1
            if size > MAX_FORGOTTEN_BYTES:
                break
            self._forget(name)
            facts.append(fact)
        return facts

    def _add(self, run: EventRun, number: int, body: bytes) -> None:
        self.offset += 1
        self.chain = link(self.chain, crc32(body))
        if run.change is StateChange.SET:
            self.keys[run.key] = self.offset
            self.changed[run.key] = with_offset(body, self.offset)
        elif run.change is StateChange.DROP:
            self.keys.pop(run.key, None)
            self.changed.pop(run.key, None)
        if run.job is not None:
            known = self.jobs.get(run.job, _NEW_JOB)
            ended_at = self.offset if run.terminal else 0
            if (known.attempt, known.ended_at) != (run.attempt, ended_at):
                self._set_attempt(run.job, JobAttempt(run.attempt, ended_at, known.token))
        self.numbers.pop(run.producer, None)
        self.numbers[run.producer] = number
        if len(self.numbers) > MAX_PRODUCERS:
            del self.numbers[next(iter(self.numbers))]

    def _set_attempt(self, name: str, job: JobAttempt) -> None:
        # Removed first, so that it comes last.
        self.jobs.pop(name, None)
        self.jobs[name] = job

    def _forget(self, job: str) -> None:
        self.jobs.pop(job, None)
        self.keys.pop(job, None)
        self.changed.pop(job, None)


_NEW_JOB = JobAttempt()
_REFUSALS = {outcome: Receipt(outcome) for outcome in Outcome}
_CHECKPOINT_FIELDS = (
    "epoch", "seq", "offset", "chain", "owner", "numbers", "jobs", "keys", "pages"
)  # fmt: skip
_decode = msgspec.json.Decoder(Ledger).decode
