"""What a topic's log says, and what an append adds to it. No input, no output."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from zlib import crc32

import msgspec
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

MAX_PRODUCERS = 256
PAGE_EVENTS = 64
"""Events between two entries of the index from offsets to the stream's sequences."""
FORGOTTEN_BYTES = 5000
"""Most bytes of a message that tell which jobs are forgotten: about a hundred."""


class Gap(Exception):
    """A message does not follow: others are missing before it, or the log began anew."""


class Run(msgspec.Struct, array_like=True, tag="run"):
    """Events in a row that differ only in their number, which grows by one."""

    count: int
    producer: str
    number: int
    key: str
    change: StateChange
    job: str | None
    attempt: int
    terminal: bool


class Forgotten(msgspec.Struct, array_like=True, tag="forgotten"):
    """A job made room: one that ended for a new key, one without a state for another."""

    job: str


class Claimed(msgspec.Struct, array_like=True, tag="claimed"):
    """A job's next attempt was given out."""

    job: str
    attempt: int
    token: str


Fact = Run | Forgotten | Claimed


class Head(msgspec.Struct, omit_defaults=True):
    """The first line of a message: where it stands, and what the fence must know of it.

    ``after`` is the sequence of the message before, 0 for the first of an
    epoch; ``offset`` and ``chain`` are the position before, ``top`` the chain
    after all of its events; ``keep_seconds`` is how long the topic lives from here on.
    """

    epoch: str
    after: int
    offset: int
    chain: int
    top: int
    keep_seconds: float
    owner: str | None = None
    facts: list[Fact] = []
    deleted: bool = False


class Message(msgspec.Struct, frozen=True):
    """One append, as the stream has it. ``at`` is when it was stored, in seconds since 1970."""

    seq: int
    at: float
    head: Head
    bodies: Sequence[bytes]

    @classmethod
    def decode(cls, seq: int, at: float, data: bytes) -> Message:
        """Read what `encode` made."""
        line, _, rest = data.partition(b"\n")
        return cls(seq, at, _decode_head(line), rest.split(b"\n") if rest else ())

    @property
    def cursor(self) -> Cursor:
        """The position after it."""
        return Cursor(self.head.epoch, self.head.offset + len(self.bodies), self.head.top)

    @property
    def is_dead(self) -> bool:
        """Whether it leaves nothing to see: the topic was deleted, or only claimed."""
        return self.head.deleted or self.cursor.offset == 0

    def expired(self, now: float) -> bool:
        """Whether the topic is over, if this is its last message."""
        return now >= self.at + self.head.keep_seconds

    def events(self) -> Iterator[Event]:
        """The events in it."""
        offset, chain = self.head.offset, self.head.chain
        for body in self.bodies:
            offset += 1
            chain = link(chain, crc32(body))
            yield Event(offset, chain, with_offset(body, offset))

    def numbers(self) -> Iterator[tuple[str, int]]:
        """Producer and number of each event in it."""
        for fact in self.head.facts:
            if isinstance(fact, Run):
                for number in range(fact.number, fact.number + fact.count):
                    yield fact.producer, number


class Job(msgspec.Struct, array_like=True, frozen=True):
    """Where a job stands; ``ended_at`` is the offset of its end, 0 while it runs."""

    attempt: int = 0
    ended_at: int = 0
    token: str = ""


class Base(msgspec.Struct):
    """A ledger at some place of the log."""

    epoch: str
    seq: int
    offset: int
    chain: int
    owner: str | None
    numbers: dict[str, int]
    jobs: dict[str, Job]
    keys: dict[str, int]
    pages: list[tuple[int, int]]


class Limits(msgspec.Struct, frozen=True):
    """What an append may not exceed, and how long a topic lives."""

    retention_events: int
    retention_seconds: float
    grace_seconds: float
    max_keys: int
    max_event_bytes: int


class Plan(msgspec.Struct, frozen=True):
    """What to append, None: nothing, and what to answer if that succeeds.

    Drafts without a receipt did not fit: append them after this.
    """

    payload: bytes | None
    head: Head
    receipts: list[Receipt]


_encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_base = msgspec.json.Decoder(Base).decode


class Ledger:
    """The fold of a topic's log.

    `append`, `claim` and `delete` change it and say what to write: call them on
    a `copy`, and `commit` that if it was stored.
    """

    __slots__ = (
        "alive_until",
        "base_offset",
        "chain",
        "changed",
        "deleted",
        "epoch",
        "expected",
        "jobs",
        "keys",
        "numbers",
        "offset",
        "owner",
        "pages",
        "seq",
    )

    def __init__(self, epoch: str, expected: int = 0) -> None:
        self.epoch = epoch
        self.seq = 0
        """The stream's sequence of the last message; 0: none in this epoch."""
        self.expected = expected
        """The sequence that the log's subject ends with; that of an older epoch at first."""
        self.offset = 0
        self.chain = 0
        self.owner: str | None = None
        self.numbers: dict[str, int] = {}
        """The last number of each producer, the one that was silent longest first."""
        self.jobs: dict[str, Job] = {}
        """Where each job stands, the one that changed longest ago first."""
        self.keys: dict[str, int] = {}
        """The offset of the last event with a state, for each key."""
        self.changed: dict[str, bytes] = {}
        """Those events that are not settled."""
        self.pages: list[tuple[int, int]] = []
        """(offset, sequence): the message with this sequence begins after this offset."""
        self.base_offset = 0
        self.alive_until = float("inf")
        self.deleted = False

    @classmethod
    def begin(cls, expected: int) -> Ledger:
        """The ledger of a new epoch."""
        return cls(secrets.token_hex(5), expected)

    @classmethod
    def restore(cls, data: bytes) -> Ledger:
        """The ledger that `settled` made."""
        base = _decode_base(data)
        ledger = cls(base.epoch, base.seq)
        ledger.seq, ledger.offset, ledger.chain = base.seq, base.offset, base.chain
        ledger.owner, ledger.numbers, ledger.jobs = base.owner, base.numbers, base.jobs
        ledger.keys, ledger.pages, ledger.base_offset = base.keys, base.pages, base.offset
        return ledger

    def copy(self) -> Ledger:
        """Another one that is the same."""
        ledger = Ledger(self.epoch, self.expected)
        ledger.seq, ledger.offset, ledger.chain = self.seq, self.offset, self.chain
        ledger.owner, ledger.deleted = self.owner, self.deleted
        ledger.base_offset, ledger.alive_until = self.base_offset, self.alive_until
        ledger.numbers, ledger.jobs = self.numbers.copy(), self.jobs.copy()
        ledger.keys, ledger.changed = self.keys.copy(), self.changed.copy()
        ledger.pages = self.pages.copy()
        return ledger

    @property
    def cursor(self) -> Cursor:
        """Where it ends."""
        return Cursor(self.epoch, self.offset, self.chain)

    def first(self, retention_events: int) -> int:
        """The oldest offset that is kept."""
        stored = self.pages[0][0] + 1 if self.pages else self.offset + 1
        return max(stored, self.offset - retention_events + 1)

    def page(self, offset: int) -> int:
        """The sequence to read from, to get all events after ``offset`` that are stored."""
        found = 0
        for before, seq in self.pages:
            if before > offset and found:
                break
            found = seq
        return found

    def take(self, message: Message) -> None:
        """Fold the next message.

        Raises:
            Gap: it is not the next one.
        """
        head = message.head
        if (head.epoch, head.after, head.offset) != (self.epoch, self.seq, self.offset):
            raise Gap(f"sequence {message.seq} follows {head.after}, not {self.seq}")
        bodies = iter(message.bodies)
        for fact in head.facts:
            if isinstance(fact, Run):
                for place in range(fact.count):
                    self._add(fact, fact.number + place, next(bodies))
            elif isinstance(fact, Claimed):
                self._stand(fact.job, Job(fact.attempt, 0, fact.token))
            else:
                self._forget(fact.job)
        self.owner, self.deleted = head.owner, head.deleted
        self.commit(head, message.seq, message.at)

    def commit(self, head: Head, seq: int, at: float) -> None:
        """The message with ``head`` is stored, as ``seq``."""
        self.seq = self.expected = seq
        self.alive_until = at + head.keep_seconds
        if not self.pages or head.offset - self.pages[-1][0] >= PAGE_EVENTS:
            self.pages.append((head.offset, seq))

    def append(self, drafts: Sequence[Draft], limits: Limits) -> Plan:
        """Add what the fence lets through."""
        head = self._head(limits.retention_seconds)
        receipts: list[Receipt] = []
        bodies: list[bytes] = []
        run: Run | None = None
        made_room = False
        for draft in drafts:
            job = _NEW_JOB if draft.job is None else self.jobs.get(draft.job, _NEW_JOB)
            refusal = self._refusal(draft, job, limits)
            is_new = draft.change is StateChange.SET and draft.key not in self.keys
            if refusal is None and is_new and len(self.keys) >= limits.max_keys:
                if made_room:
                    break
                forgotten = self._make_room(limits.max_keys)
                if forgotten:
                    head.facts.extend(forgotten)
                    run, made_room = None, True
                    if len(self.keys) >= limits.max_keys:
                        break
                else:
                    refusal = Outcome.TOO_MANY_KEYS
            if refusal is not None:
                receipts.append(_REFUSALS[refusal])
                continue
            attempt = job.attempt if draft.attempt is None else draft.attempt
            if (
                run is not None
                and run.producer == draft.producer
                and run.number + run.count == draft.number
                and run.key == draft.key
                and run.change is draft.change
                and run.job == draft.job
                and run.attempt == attempt
                and run.terminal == draft.terminal
            ):
                run.count += 1
            else:
                run = Run(
                    1,
                    draft.producer,
                    draft.number,
                    draft.key,
                    draft.change,
                    draft.job,
                    attempt,
                    draft.terminal,
                )
                head.facts.append(run)
            self._add(run, draft.number, draft.body)
            if not made_room and (forgotten := self._forget_stateless(limits.max_keys)):
                head.facts.extend(forgotten)
                run, made_room = None, True
            bodies.append(draft.body)
            receipts.append(Receipt(Outcome.APPENDED, self.cursor))
            if draft.owner is not None:
                self.owner = self.owner or draft.owner
            ended = draft.terminal and draft.topic == f"job:{draft.job}"
            head.keep_seconds = limits.grace_seconds if ended else limits.retention_seconds
        return self._plan(head, bodies, receipts)

    def claim(self, job: str, token: str, limits: Limits) -> tuple[int, Plan | None]:
        """The number of the job's next attempt, and what to append so that it is."""
        if self.deleted:
            return 0, None
        known = self.jobs.get(job, _NEW_JOB)
        if known.token == token and known.attempt:
            return known.attempt, None
        claimed = Claimed(job, known.attempt + 1, token)
        self._stand(job, Job(claimed.attempt, 0, token))
        head = self._head(limits.retention_seconds)
        head.facts.append(claimed)
        head.facts.extend(self._forget_stateless(limits.max_keys))
        return claimed.attempt, self._plan(head, (), [])

    def delete(self, limits: Limits) -> Plan:
        """What to append so that the topic is gone."""
        head = Head(self.epoch, 0, 0, 0, 0, limits.grace_seconds, deleted=True)
        return Plan(_encode(head), head, [])

    def settled(self, retention_events: int) -> bytes:
        """The base to write once all of ``changed`` is; pages that nobody needs are left out."""
        first = self.first(retention_events)
        while len(self.pages) > 1 and self.pages[1][0] < first:
            del self.pages[0]
        base = Base(
            self.epoch,
            self.seq,
            self.offset,
            self.chain,
            self.owner,
            self.numbers,
            self.jobs,
            self.keys,
            self.pages,
        )
        return _encode(base)

    def _head(self, keep_seconds: float) -> Head:
        return Head(
            self.epoch, self.seq, self.offset, self.chain, self.chain, keep_seconds, facts=[]
        )

    def _plan(self, head: Head, bodies: Sequence[bytes], receipts: list[Receipt]) -> Plan:
        if not head.facts:
            return Plan(None, head, receipts)
        head.top, head.owner = self.chain, self.owner
        return Plan(b"\n".join([_encode(head), *bodies]), head, receipts)

    def _refusal(self, draft: Draft, job: Job, limits: Limits) -> Outcome | None:
        if self.deleted:
            return Outcome.CLOSED
        if draft.number <= self.numbers.get(draft.producer, 0):
            return Outcome.DUPLICATE
        if len(draft.body) > limits.max_event_bytes:
            return Outcome.TOO_BIG
        if draft.job is not None:
            standing = fence.AttemptState(job.attempt, job.ended_at > 0)
            verdict = fence.check_fence(standing, draft.attempt, draft.terminal)
            if isinstance(verdict, fence.Refusal):
                return Outcome(verdict.value)
        return None

    def _make_room(self, max_keys: int) -> list[Forgotten]:
        """Forget ended jobs; none if even all of them give no room."""
        ended = sorted(
            (job.ended_at, name)
            for name, job in self.jobs.items()
            if job.ended_at and name in self.keys
        )
        if len(self.keys) - len(ended) >= max_keys:
            return []
        # A quarter at once, longest ended first: making room for one costs a walk over all.
        return self._forget_first([name for _, name in ended[: max(1, max_keys // 4)]])

    def _forget_stateless(self, max_jobs: int) -> list[Forgotten]:
        """Forget the oldest jobs without a state if there are too many; they take no key, so no
        key ever makes room for them."""
        excess = len(self.jobs) - len(self.keys) - max_jobs
        if excess <= 0:
            return []
        stateless = [name for name in self.jobs if name not in self.keys]
        return self._forget_first(stateless[: excess + max_jobs // 4])

    def _forget_first(self, names: Sequence[str]) -> list[Forgotten]:
        """Forget as many of ``names`` as the head of a message has room for."""
        facts: list[Forgotten] = []
        size = 0
        for name in names:
            fact = Forgotten(name)
            size += len(_encode(fact)) + 1
            if size > FORGOTTEN_BYTES:
                break
            self._forget(name)
            facts.append(fact)
        return facts

    def _add(self, run: Run, number: int, body: bytes) -> None:
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
                self._stand(run.job, Job(run.attempt, ended_at, known.token))
        self.numbers.pop(run.producer, None)
        self.numbers[run.producer] = number
        if len(self.numbers) > MAX_PRODUCERS:
            del self.numbers[next(iter(self.numbers))]

    def _stand(self, name: str, job: Job) -> None:
        self.jobs.pop(name, None)
        self.jobs[name] = job

    def _forget(self, job: str) -> None:
        self.jobs.pop(job, None)
        self.keys.pop(job, None)
        self.changed.pop(job, None)


_NEW_JOB = Job()
_REFUSALS = {outcome: Receipt(outcome) for outcome in Outcome}
