"""Join what is read from a log with what arrives live, without gap or duplicate."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from operator import attrgetter

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.limits import MAX_HELD_BATCHES

_offset = attrgetter("offset")

NOWHERE = Cursor("", 0, 0)
"""The position in a topic that the backend does not know."""


class Admission(StrEnum):
    """What `EventBuffer.admit` or `Splice.receive` did with a live batch."""

    FRESH = "fresh"
    """It had new events, which are kept."""
    KNOWN = "known"
    """All of its events were known."""
    HELD = "held"
    """It waits until the position is known."""
    GAP = "gap"
    """Events before it are missing. Nothing changed."""
    DIVERGED = "diverged"
    """It is of another history: a failover has rewritten the log. Nothing changed."""
    OTHER_EPOCH = "other_epoch"
    """It belongs to another lifetime of the log. Nothing changed."""

    @property
    def resync_reason(self) -> ResyncReason | None:
        """Why the topic must be read again; None: it need not be."""
        if self is Admission.DIVERGED:
            return ResyncReason.DIVERGED
        return ResyncReason.GAP if self in (Admission.GAP, Admission.OTHER_EPOCH) else None


class ResyncReason(StrEnum):
    """Why a topic must be read again."""

    GAP = "gap"
    """Live batches do not continue each other."""
    DIVERGED = "diverged"
    """Live batches continue another history: a failover has rewritten the log."""
    INTERRUPTED = "interrupted"
    """The subscription broke and works again."""
    TAIL = "tail"
    """The backend is ahead of the newest live event."""
    AHEAD = "ahead"
    """A subscriber read a position that the live events have not reached, or another history."""
    OUTAGE = "outage"
    """The backend was away."""


class EventBuffer:
    """The newest events of one topic, contiguous, and the position they lead to.

    All watchers of a topic in a process read from one buffer, so a slow one
    costs a position, not a copy.

    >>> recent = EventBuffer()
    >>> recent.restart(Cursor("e", 4, 0))
    >>> recent.admit(Cursor("e", 4, 0), [Event(5, 1, b"a"), Event(6, 2, b"b")])
    <Admission.FRESH: 'fresh'>
    >>> [event.offset for event in recent.since(5)]
    [6]
    >>> recent.admit(Cursor("e", 8, 3), [Event(9, 4, b"c")])
    <Admission.GAP: 'gap'>
    >>> recent.admit(Cursor("e", 6, 7), [Event(7, 4, b"c")])
    <Admission.DIVERGED: 'diverged'>
    """

    def __init__(self) -> None:
        self.epoch: str | None = None
        """The history that the events belong to; None before the first position is known."""
        self.base = Cursor("", 0, 0)
        """The position before the first kept event."""
        self.offset = 0
        """The offset of the newest event."""
        self.bytes = 0
        """The bytes of the kept events."""
        self._events: list[Event] = []
        # The offset of each of `_events`, for bisection.
        self._offsets: list[int] = []

    def __len__(self) -> int:
        return len(self._events)

    @property
    def cursor(self) -> Cursor:
        """The position of the newest event."""
        if self._events:
            last = self._events[-1]
            return Cursor(self.epoch or "", last.offset, last.chain)
        return self.base

    def restart(self, cursor: Cursor) -> None:
        """Forget all events and continue from ``cursor``."""
        self.epoch = cursor.epoch
        self.base = cursor
        self.offset = cursor.offset
        self.bytes = 0
        self._events.clear()
        self._offsets.clear()

    def admit(self, prev: Cursor, events: Sequence[Event]) -> Admission:
        """Add a batch whose first event follows the position ``prev``.

        A batch may overlap with the known events; only its new events are
        added. They continue this history for certain: the last position that
        the batch has in common with it is compared with its chain, which
        covers all events before. So an event of a rewritten log is never added,
        though its offset follows.
        """
        if prev.epoch != self.epoch:
            return Admission.OTHER_EPOCH
        if prev.offset > self.offset:
            return Admission.GAP
        known = bisect_right(events, self.offset, key=_offset)
        place = prev
        if known:
            last = events[known - 1]
            place = Cursor(prev.epoch, last.offset, last.chain)
        fresh = events[known:]
        if fresh and place != self.cursor:
            return Admission.DIVERGED
        # What ended before the kept events cannot be compared, and adds nothing.
        if place.offset >= self.base.offset and not self.knows(place):
            return Admission.DIVERGED
        if not fresh:
            return Admission.KNOWN
        self._events.extend(fresh)
        self._offsets.extend(event.offset for event in fresh)
        self.bytes += sum(len(event.json) for event in fresh)
        self.offset = fresh[-1].offset
        return Admission.FRESH

    def since(self, offset: int) -> list[Event] | None:
        """Return the events after ``offset``, or None when some of them are no longer kept."""
        if offset < self.base.offset:
            return None
        return self._events[bisect_right(self._offsets, offset) :]

    def bytes_since(self, offset: int) -> int:
        """Return about how many bytes follow ``offset``, as if all events had the mean size."""
        kept = len(self._offsets)
        return self.bytes * (kept - bisect_right(self._offsets, offset)) // kept if kept else 0

    def knows(self, cursor: Cursor) -> bool:
        """Return True if ``cursor`` is a position in this history, so that `since` may serve it."""
        if cursor.epoch != self.epoch:
            return False
        if cursor.offset == self.base.offset:
            return cursor == self.base
        index = bisect_right(self._offsets, cursor.offset) - 1
        if index < 0 or self._offsets[index] != cursor.offset:
            return False
        return self._events[index].chain == cursor.chain

    def trim(
        self,
        needed: int,
        keep_events: int,
        max_bytes: int,
        *,
        spared: int | None = None,
        spare_bytes: int = 0,
    ) -> None:
        """Drop old events.

        Keeps the events after the offset ``needed`` and at least
        ``keep_events``, but never more than ``max_bytes``; of the events after
        the offset ``spared``, if that is given, never more than ``spare_bytes``.
        """
        drop = min(max(0, len(self._events) - keep_events), bisect_right(self._offsets, needed))
        waste = sum(len(event.json) for event in self._events[:drop])
        first_spared = bisect_right(self._offsets, self.offset if spared is None else spared)
        while drop < len(self._events):
            if self.bytes - waste <= (max_bytes if drop < first_spared else spare_bytes):
                break
            waste += len(self._events[drop].json)
            drop += 1
        if drop:
            last = self._events[drop - 1]
            self.base = Cursor(self.epoch or "", last.offset, last.chain)
            del self._events[:drop], self._offsets[:drop]
            self.bytes -= waste


class Phase(StrEnum):
    """The phase of a `Splice`."""

    HOLDING = "holding"
    """Nothing was read yet: live batches are held."""
    LIVE = "live"
    """The position is known: live batches are admitted."""
    RESYNCING = "resyncing"
    """The topic is being read again: live batches are held."""


Batch = tuple[Cursor, Sequence[Event]]
"""The position before the first event, and the events."""


class Splice:
    """The position of one topic, built from readings and live batches in whichever order.

    The caller passes on each live batch (`receive`) and each reading (`join`).
    When one of the two says that the topic must be read again, the caller
    enters RESYNCING (`start_resync`), reads from `asked` on, and passes the
    reading to `finish_resync`, until that returns True.

    >>> splice = Splice()
    >>> splice.receive(Cursor("e", 4, 0), [Event(5, 1, b"a")])
    <Admission.HELD: 'held'>
    >>> splice.join(None, Cursor("e", 4, 0), None)
    >>> splice.phase, splice.buffer.offset
    (<Phase.LIVE: 'live'>, 5)
    >>> splice.receive(Cursor("e", 8, 2), [Event(9, 3, b"c")])
    <Admission.GAP: 'gap'>
    """

    def __init__(self, max_held: int = MAX_HELD_BATCHES) -> None:
        self.buffer = EventBuffer()
        """The newest events and the position; empty while HOLDING."""
        self.phase = Phase.HOLDING
        # Live batches while not LIVE, oldest first. The oldest are dropped, so that a loss
        # leaves a gap, which is noticed. Made when the first one comes: there are thousands of
        # topics, and hardly one of them ever holds any.
        self._held: deque[Batch] | None = None
        self._max_held = max_held
        # Whether `start_resync` was called during a resync, whose reading may then be too old.
        # Cleared by `finish_resync`.
        self._reads_again = False

    @property
    def held(self) -> int:
        """How many live batches are held."""
        return len(self._held or ())

    @property
    def asked(self) -> Cursor | None:
        """The cursor to read from in a resync; None: there is no position yet."""
        return self.buffer.cursor if self.buffer.epoch else None

    def receive(self, prev: Cursor, events: Sequence[Event]) -> Admission:
        """Receive a live batch whose first event follows the position ``prev``."""
        if self.phase is not Phase.LIVE:
            if self._held is None:
                self._held = deque(maxlen=self._max_held)
            self._held.append((prev, events))
            return Admission.HELD
        if self.buffer.epoch == "" and prev.offset == 0:
            # The topic did not exist, and this is its beginning.
            self.buffer.restart(prev)
        return self.buffer.admit(prev, events)

    def join(
        self, asked: Cursor | None, place: Cursor, replay: Sequence[Event] | None
    ) -> ResyncReason | None:
        """Join a reading from ``asked`` to ``place`` with the live batches.

        ``replay`` are its events after ``asked``; None if it was a snapshot.
        Return why the topic must be read again, or None. During a resync
        nothing is joined: the resync decides.
        """
        if self.phase is Phase.RESYNCING:
            return None
        if self.phase is Phase.HOLDING:
            self.buffer.restart(place)
            if (reason := self._release_held()) is not None:
                return reason
        elif replay is not None and asked is not None:
            # Perhaps read ahead of the live events; a gap is found below.
            self.receive(asked, replay)
        # Read ahead of the live events, or the topic began, ended or was rewritten.
        return None if self.buffer.knows(place) else ResyncReason.AHEAD

    def start_resync(self) -> bool:
        """Hold live batches from here on. Return False if a resync is under way already.

        The batches that were held before are dropped: the log that is now read
        includes their events, unless a failover has lost them. A reading that
        is under way may be too old, so that resync will read once more.
        """
        self._held = None
        if self.phase is Phase.RESYNCING:
            self._reads_again = True
            return False
        self.phase = Phase.RESYNCING
        return True

    def finish_resync(self, place: Cursor, replay: Sequence[Event] | None) -> bool:
        """End a resync with a reading from `asked` to ``place``.

        ``replay`` are its events; None if it was a snapshot, to which the
        position then jumps. Return False if the held batches leave a gap, or if
        `start_resync` was called since: the resync goes on, and the topic must
        be read once more.
        """
        held, self._held = self._held, None
        self.phase = Phase.LIVE
        if replay is None:
            self.buffer.restart(place)
        elif replay:
            self.receive(self.buffer.cursor, replay)
        self._held = held
        if not self._reads_again and self._release_held() is None:
            return True
        self._reads_again = False
        self.phase = Phase.RESYNCING
        return False

    def _release_held(self) -> ResyncReason | None:
        """Receive the held batches. Return why the topic must be read again, or None."""
        held, self._held = self._held, None
        self.phase = Phase.LIVE
        reasons = [self.receive(*batch).resync_reason for batch in held or ()]
        return next((reason for reason in reasons if reason is not None), None)
