"""Join what was read from a log with what arrives live, without gap or duplicate."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from enum import StrEnum
from operator import attrgetter

from semantik_realtime.core.event import Cursor, Event

_offset = attrgetter("offset")


class Admission(StrEnum):
    """What became of a batch."""

    FRESH = "fresh"
    KNOWN = "known"
    GAP = "gap"
    OTHER_EPOCH = "other_epoch"


class EventBuffer:
    """The newest events of one topic, contiguous, and the position they lead to.

    All watchers of a topic in a process read from one of these, so a slow one
    costs a position, not a copy.

    >>> recent = EventBuffer()
    >>> recent.restart(Cursor("e", 4, 0))
    >>> recent.admit("e", 4, [Event(5, 1, b"a"), Event(6, 2, b"b")])
    <Admission.FRESH: 'fresh'>
    >>> [event.offset for event in recent.since(5)]
    [6]
    >>> recent.admit("e", 8, [Event(9, 3, b"c")])
    <Admission.GAP: 'gap'>
    """

    def __init__(self) -> None:
        self.epoch: str | None = None
        self.base = Cursor("", 0, 0)
        """Where the kept events begin: the position before the first of them."""
        self.offset = 0
        self.bytes = 0
        self._events: list[Event] = []
        self._offsets: list[int] = []

    def __len__(self) -> int:
        return len(self._events)

    @property
    def cursor(self) -> Cursor:
        """The newest position."""
        if self._events:
            last = self._events[-1]
            return Cursor(self.epoch or "", last.offset, last.chain)
        return self.base

    def restart(self, cursor: Cursor) -> None:
        """Forget everything and go on from ``cursor``."""
        self.epoch = cursor.epoch
        self.base = cursor
        self.offset = cursor.offset
        self.bytes = 0
        self._events.clear()
        self._offsets.clear()

    def admit(self, epoch: str, prev: int, events: Sequence[Event]) -> Admission:
        """Take a batch whose first event follows the offset ``prev``.

        A batch may overlap with what is known; only its news are kept. If the
        two contradict each other the log was rewritten, and the answer is GAP
        too: it must be read again. After GAP or OTHER_EPOCH nothing has changed.
        """
        if epoch != self.epoch:
            return Admission.OTHER_EPOCH
        if prev > self.offset:
            return Admission.GAP
        known = bisect_right(events, self.offset, key=_offset)
        if known:
            # A chain covers all that came before it, so one look is enough.
            last = events[known - 1]
            place = Cursor(epoch, last.offset, last.chain)
            if place.offset >= self.base.offset and not self.knows(place):
                return Admission.GAP
        fresh = events[known:]
        if not fresh:
            return Admission.KNOWN
        self._events.extend(fresh)
        self._offsets.extend(event.offset for event in fresh)
        self.bytes += sum(len(event.json) for event in fresh)
        self.offset = fresh[-1].offset
        return Admission.FRESH

    def since(self, offset: int) -> list[Event] | None:
        """The events after ``offset``, or None when some of them are no longer kept."""
        if offset < self.base.offset:
            return None
        return self._events[bisect_right(self._offsets, offset) :]

    def bytes_since(self, offset: int) -> int:
        """About how many bytes come after ``offset``: events are taken to be of the mean size."""
        kept = len(self._offsets)
        return self.bytes * (kept - bisect_right(self._offsets, offset)) // kept if kept else 0

    def knows(self, cursor: Cursor) -> bool:
        """Whether ``cursor`` is a place in this very history, so that `since` may serve it."""
        if cursor.epoch != self.epoch:
            return False
        if cursor.offset == self.base.offset:
            return cursor == self.base
        index = bisect_right(self._offsets, cursor.offset) - 1
        if index < 0 or self._offsets[index] != cursor.offset:
            return False
        return self._events[index].chain == cursor.chain

    def trim(self, needed: int, keep_events: int, max_bytes: int) -> None:
        """Drop old events.

        Keeps those after the offset ``needed`` and at least ``keep_events``,
        but never more than ``max_bytes``.
        """
        drop = min(max(0, len(self._events) - keep_events), bisect_right(self._offsets, needed))
        waste = sum(len(event.json) for event in self._events[:drop])
        while drop < len(self._events) and self.bytes - waste > max_bytes:
            waste += len(self._events[drop].json)
            drop += 1
        if drop:
            last = self._events[drop - 1]
            self.base = Cursor(self.epoch or "", last.offset, last.chain)
            del self._events[:drop], self._offsets[:drop]
            self.bytes -= waste
