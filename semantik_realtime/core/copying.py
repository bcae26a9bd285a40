"""What is copied of a topic from one engine to another, and how two copies are compared. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from semantik_realtime.core.event import Cursor, Event, position_before

UNKNOWN = ""
"""The place of a topic that an engine does not know."""
DELETED = "deleted"
"""The place of a topic that was deleted and still refuses drafts."""


class CopiedEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry of the log: the event, and by which draft it was appended."""

    event: Event
    producer: str
    number: int


class CopiedJob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the fence knows of a job."""

    attempt: int
    ended_at: int
    """The offset of the attempt's end; 0 while it has not ended."""
    changed_at: int
    """About the offset at which this changed; it orders the jobs by age."""
    token: str


class CopiedProducer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last number of a producer."""

    number: int
    age_seconds: float
    """Since its last append; 0.0 if the engine does not know."""


class TopicCopy(msgspec.Struct):
    """A topic as of one moment. Everything but the times is the same in every engine."""

    topic: str
    cursor: Cursor
    """The end of the log; offset 0: there are no events, only attempts."""
    owner: str | None = None
    deleted: bool = False
    """Whether it was deleted, and refuses drafts; then only ``keep_seconds`` matters."""
    keep_seconds: float = 0.0
    """After how long it expires."""
    is_open: bool = False
    """Whether its own job has a state and has not ended (`semantik_realtime.core.retention`)."""
    due_at: float | None = None
    """When that job is due, in seconds since 1970."""
    events: Sequence[CopiedEvent] = ()
    """Without holes, up to the cursor; those after an offset if only they were read."""
    states: dict[str, bytes] = {}
    """The last event with a state of each key."""
    jobs: dict[str, CopiedJob] = {}
    producers: dict[str, CopiedProducer] = {}
    """The one that appended longest ago comes first."""

    @property
    def place(self) -> str:
        """Where the topic is: `DELETED`, or its cursor as a text."""
        return DELETED if self.deleted else str(self.cursor)

    def digest(self) -> bytes:
        """Return 16 bytes that are equal for equal copies, whatever the engine.

        The chain of the cursor stands for the events. Times and the order of jobs are left out.

        >>> one = TopicCopy("job:1", Cursor("e", 1, 5), states={"1": b"{}"}, keep_seconds=5.0)
        >>> other = TopicCopy("job:1", Cursor("e", 1, 5), states={"1": b"{}"}, keep_seconds=4.0)
        >>> one.digest() == other.digest(), one.digest() == TopicCopy("job:1", one.cursor).digest()
        (True, False)
        """
        if self.deleted:
            return DELETED.encode()
        facts = (
            str(self.cursor),
            self.owner,
            self.is_open,
            sorted(self.states.items()),
            sorted((job, one.attempt, one.ended_at, one.token) for job, one in self.jobs.items()),
            sorted((name, one.number) for name, one in self.producers.items()),
        )
        return hashlib.blake2b(_encode(facts), digest_size=16).digest()


_encode = msgspec.msgpack.Encoder().encode


def keep_sound_events(copy: TopicCopy) -> int:
    """Leave out events that do not lead to the cursor without a hole; return how many those are.

    The newest ones that do are kept. An event whose bytes were damaged ends them: the chain of
    its log is that of the bytes that were appended, and no engine could compute it again.

    >>> body = b'{"type":"note"}'
    >>> from zlib import crc32
    >>> from semantik_realtime.core.event import link, with_offset
    >>> log, chain = [], 0
    >>> for offset in (1, 2, 3):
    ...     chain = link(chain, crc32(body))
    ...     stored = b"rubbish" if offset == 2 else with_offset(body, offset)
    ...     log.append(CopiedEvent(Event(offset, chain, stored), "p", offset))
    >>> copy = TopicCopy("job:1", Cursor("e", 3, chain), events=log)
    >>> keep_sound_events(copy), [one.event.offset for one in copy.events]
    (2, [3])
    """
    events, kept = copy.events, len(copy.events)
    offset, chain = copy.cursor.offset, copy.cursor.chain
    while kept > 0:
        event = events[kept - 1].event
        starts = b'{"offset":%d,' % offset
        if (event.offset, event.chain) != (offset, chain) or not event.json.startswith(starts):
            break
        before = position_before(copy.cursor.epoch, event)
        older = events[kept - 2].event if kept > 1 else None
        if older is not None and older.offset == before.offset and older.chain != before.chain:
            # The event before says which bytes were appended: not these.
            break
        offset, chain = before.offset, before.chain
        kept -= 1
    copy.events = events[kept:]
    return kept


def continues(copy: TopicCopy, place: str) -> bool:
    """Return True if the events of ``copy``, read after the offset of ``place``, follow it.

    Then only they have to be stored. The chain shows a log that began again, or was rewritten.

    >>> from zlib import crc32
    >>> from semantik_realtime.core.event import link, with_offset
    >>> body = b'{"type":"note"}'
    >>> event = Event(8, link(5, crc32(body)), with_offset(body, 8))
    >>> copy = TopicCopy("job:1", Cursor("e", 8, event.chain))
    >>> copy.events = [CopiedEvent(event, "p", 1)]
    >>> continues(copy, "e.7.00000005"), continues(copy, "e.7.00000006"), continues(copy, "")
    (True, False, False)
    """
    if place in (UNKNOWN, DELETED) or copy.deleted:
        return False
    if not copy.events:
        return place == copy.place
    return place == str(position_before(copy.cursor.epoch, copy.events[0].event))


def offset_of_place(place: str) -> int:
    """Return the offset of a place; 0 without one.

    >>> offset_of_place("e.7.00000005"), offset_of_place(DELETED), offset_of_place(UNKNOWN)
    (7, 0, 0)
    """
    return Cursor.parse(place).offset


def runs_of(events: Sequence[CopiedEvent]) -> list[tuple[str, int, int]]:
    """Return the drafts of events as runs: the producer, its first number, and how many follow.

    >>> event = Event(1, 1, b"")
    >>> runs_of([CopiedEvent(event, *draft) for draft in (("p", 1), ("p", 2), ("q", 3))])
    [('p', 1, 2), ('q', 3, 1)]
    """
    runs: list[tuple[str, int, int]] = []
    for one in events:
        producer, first, count = runs[-1] if runs else ("", 0, 0)
        if runs and (producer, first + count) == (one.producer, one.number):
            runs[-1] = (producer, first, count + 1)
        else:
            runs.append((one.producer, one.number, 1))
    return runs


class Role(StrEnum):
    """What a server is to a migration. All but `ARRIVED` refuse whatever processes write."""

    SOURCE = "source"
    """It is closed: its topics are on the other server."""
    TARGET = "target"
    """It is being filled, and nobody but the migration may write yet."""
    ARRIVED = "arrived"
    """It was filled, and is open."""


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a migration leaves on both of its servers."""

    role: Role
    migration: str
    """A random name, the same on both."""
    other: str
    """The address of the other server, without passwords."""
    since: str
    """When it was set, as events have it."""
    run: str = ""
    """Of a target: a random name of the one run of the command that may fill it."""

    @property
    def closes(self) -> bool:
        """Whether the server refuses what processes write."""
        return self.role is not Role.ARRIVED

    @property
    def reason(self) -> str:
        """Why it does, as the end of a sentence for an operator."""
        if self.role is Role.SOURCE:
            return (
                f"its topics were moved to {self.other} at {self.since}: restart this process with "
                "that address"
            )
        return f"topics are being moved to it from {self.other} since {self.since}"


def find_takeover(mark: Mark | None, run: str) -> str:
    """Return why the server with this mark may not be filled by this run any more; "": it may.

    >>> mark = Mark(Role.TARGET, "m", "redis://a", "noon", "r")
    >>> find_takeover(mark, "r")
    ''
    >>> find_takeover(mark, "other")
    'another migrate has marked TO at noon: this one ends, and that one decides what is open'
    >>> find_takeover(Mark(Role.ARRIVED, "m", "redis://a", "noon"), "r")
    'another migrate has opened TO at noon: nothing more is copied to it'
    >>> find_takeover(None, "r")
    'TO has lost the mark of this migration: nothing more is copied to it'
    """
    if mark is None:
        return "TO has lost the mark of this migration: nothing more is copied to it"
    if mark.role is Role.ARRIVED:
        return f"another migrate has opened TO at {mark.since}: nothing more is copied to it"
    if (mark.role, mark.run) != (Role.TARGET, run):
        return (
            f"another migrate has marked TO at {mark.since}: this one ends, and that one decides "
            "what is open"
        )
    return ""


def find_conflict(
    source: Mark | None, target: Mark | None, address: str, *, target_has_topics: bool
) -> str:
    """Return why no migration may go on between servers with these marks; "": it may.

    ``address`` is that of the source.

    >>> find_conflict(None, None, "x", target_has_topics=True)
    'TO has topics already, and no migration has put them there'
    >>> target = Mark(Role.TARGET, "m", "redis://a", "")
    >>> find_conflict(None, target, "redis://a", target_has_topics=True)
    ''
    >>> find_conflict(None, target, "redis://b", target_has_topics=True)
    'TO is being filled from redis://a: finish that, or empty TO'
    >>> find_conflict(target, None, "x", target_has_topics=False)
    'topics are being moved to FROM: it has not all of them yet'
    >>> find_conflict(None, Mark(Role.ARRIVED, "m", "redis://a", ""), "x", target_has_topics=True)
    'TO was filled by a migration from redis://a and is open: it may have newer events than FROM'

    The way back: what is in TO are older copies of what is in FROM.

    >>> arrived, closed = Mark(Role.ARRIVED, "m", "x", ""), Mark(Role.SOURCE, "m", "y", "")
    >>> find_conflict(arrived, closed, "x", target_has_topics=True)
    ''
    """
    if source is not None and source.role is Role.TARGET:
        return "topics are being moved to FROM: it has not all of them yet"
    if source is not None and source.role is Role.SOURCE:
        if target is None or target.migration != source.migration:
            return f"the topics of FROM were moved to {source.other}, and TO is another server"
    if target is None:
        return "TO has topics already, and no migration has put them there" * target_has_topics
    if target.role is Role.TARGET and target.other != address:
        return f"TO is being filled from {target.other}: finish that, or empty TO"
    if target.role is Role.ARRIVED:
        return (
            f"TO was filled by a migration from {target.other} and is open: it may have newer "
            "events than FROM"
        )
    if target.role is Role.SOURCE and (source is None or source.migration != target.migration):
        return f"the topics of TO were moved to {target.other}, which is not FROM"
    return ""
