"""Drafts on their way to the backend: in order, bounded, the least important dropped first."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain

from semantik_realtime.core.event import Draft, StateChange
from semantik_realtime.core.limits import SPOOL_BYTES, SPOOL_DRAFTS


class Spool:
    """A bounded queue that makes room by dropping the least important drafts.

    When full it drops, in this order and as few as possible: the oldest draft
    whose state a later one of the same topic and key supersedes; the oldest
    draft that does not end an attempt; and only when no other is left, the
    oldest end. A draft over ``max_bytes`` is dropped itself. The drafts that
    `next_batch` returned are in flight until `ack`: they still wait, but are
    not dropped and not counted in the bounds.
    """

    def __init__(self, max_drafts: int = SPOOL_DRAFTS, max_bytes: int = SPOOL_BYTES) -> None:
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        # By running number, oldest first; those in flight are in `_flight`.
        self._drafts: OrderedDict[int, Draft] = OrderedDict()
        self._bytes = 0
        # Older than all of the others. Replaced, never changed: another thread may read it.
        self._flight: dict[int, Draft] = {}
        # The running number of the next draft.
        self._next = 0
        # Which drafts to drop first. Made when room first runs short, cleared when the spool is
        # empty: before that it would cost time for nothing.
        self._ranks: Ranks | None = None

    def __len__(self) -> int:
        return len(self._drafts) + len(self._flight)

    @property
    def bytes(self) -> int:
        """How many bytes the bodies have, those in flight included."""
        return self._bytes + sum(len(draft.body) for draft in self._flight.values())

    @property
    def added(self) -> int:
        """How many drafts were ever added."""
        return self._next

    @property
    def oldest(self) -> int:
        """The running number of the oldest draft that waits or is in flight; `added` when empty."""
        return next(iter(self._flight or self._drafts), self._next)

    def add(self, draft: Draft) -> list[Draft]:
        """Append ``draft``; return the drafts that were dropped for it (rarely itself)."""
        number = self._next
        self._next += 1
        if len(draft.body) > self._max_bytes:
            return [draft]
        self._drafts[number] = draft
        self._bytes += len(draft.body)
        if self._ranks is not None:
            self._ranks.add(number, draft)
        lost: list[Draft] = []
        while len(self._drafts) > self._max_drafts or self._bytes > self._max_bytes:
            lost.append(self._remove(self._least()))
        return lost

    def next_batch(self, max_drafts: int, max_bytes: int = 2**20) -> list[Draft]:
        """Put the oldest drafts in flight, at least one; return the same ones until `ack`."""
        if not self._flight:
            flight: dict[int, Draft] = {}
            size = 0
            while self._drafts and len(flight) < max_drafts:
                number, draft = next(iter(self._drafts.items()))
                size += len(draft.body)
                if flight and size > max_bytes:
                    break
                flight[number] = self._remove(number)
            self._flight = flight
        return list(self._flight.values())

    def ack(self) -> None:
        """Forget the drafts in flight: they have a receipt."""
        self._flight = {}

    def since(self, number: int) -> list[Draft]:
        """Return the drafts from a running number on, those in flight included, in order."""
        found: list[Draft] = []
        newest_first = chain(reversed(self._drafts.items()), reversed(self._flight.items()))
        for running, draft in newest_first:
            if running < number:
                break
            found.append(draft)
        return found[::-1]

    def _least(self) -> int:
        if self._ranks is None:
            self._ranks = Ranks()
            for number, draft in self._drafts.items():
                self._ranks.add(number, draft)
        least = self._ranks.least()
        return next(iter(self._drafts)) if least is None else least

    def _remove(self, number: int) -> Draft:
        draft = self._drafts.pop(number)
        self._bytes -= len(draft.body)
        if not self._drafts:
            self._ranks = None
        elif self._ranks is not None:
            self._ranks.remove(number, draft)
        return draft


class Ranks:
    """The order in which waiting drafts are dropped.

    A later draft supersedes an earlier one of its topic and key if the fence
    cannot refuse the later and accept the earlier one. So both belong to one
    run: drafts of one job in a topic, of one attempt, only the last an end.
    """

    def __init__(self) -> None:
        # Running numbers, oldest first: drafts that a later one supersedes, and the other
        # drafts that end no attempt.
        self.superseded: OrderedDict[int, None] = OrderedDict()
        self._plain: OrderedDict[int, None] = OrderedDict()
        # For each topic and job the present run: its attempt, and the newest draft of each key.
        self._runs: dict[tuple[str, str | None], tuple[int | None, dict[str, int]]] = {}

    def add(self, number: int, draft: Draft) -> None:
        """Record a draft that was added."""
        scope = (draft.topic, draft.job)
        run = self._runs.get(scope)
        if run is None or run[0] != draft.attempt:
            run = self._runs[scope] = (draft.attempt, {})
        if draft.change is not StateChange.KEEP:
            earlier = run[1].get(draft.key)
            if earlier is not None:
                del self._plain[earlier]
                self.superseded[earlier] = None
            run[1][draft.key] = number
        if draft.terminal:
            del self._runs[scope]
        else:
            self._plain[number] = None

    def remove(self, number: int, draft: Draft) -> None:
        """Forget a draft that was removed."""
        self.superseded.pop(number, None)
        self._plain.pop(number, None)
        scope = (draft.topic, draft.job)
        run = self._runs.get(scope)
        if run is None:
            return
        if run[1].get(draft.key) == number:
            del run[1][draft.key]
        if not run[1]:
            del self._runs[scope]

    def least(self) -> int | None:
        """Return the running number of the draft to drop first; None: there are only ends."""
        return next(iter(self.superseded), next(iter(self._plain), None))
