"""Drafts on their way to the backend: in order, bounded, the least important dropped first."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain

from semantik_realtime.core.event import Draft, StateChange


class Spool:
    """A bounded queue that makes room by leaving out what matters least.

    When full it drops, in this order and no more than it must: the oldest
    draft whose state a later one of the same topic and key supersedes; the
    oldest draft that does not end an attempt; and only when nothing else is
    left, the oldest end. A draft over ``max_bytes`` is left out itself. What
    was taken with `take` is in flight until `land`: still here, but out of
    reach and outside the bounds.
    """

    def __init__(self, max_drafts: int = 10_000, max_bytes: int = 16 * 2**20) -> None:
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._drafts: OrderedDict[int, Draft] = OrderedDict()
        self._bytes = 0
        # Older than all of the others. Replaced, never changed: it may be read meanwhile.
        self._flight: dict[int, Draft] = {}
        self._next = 0
        # Costs nothing before there is a reason to choose: made when room first runs short,
        # and kept until all is gone.
        self._ranks: Ranks | None = None

    def __len__(self) -> int:
        return len(self._drafts) + len(self._flight)

    @property
    def bytes(self) -> int:
        """Of the bodies, in flight too."""
        return self._bytes + sum(len(draft.body) for draft in self._flight.values())

    @property
    def added(self) -> int:
        """How many drafts were ever added."""
        return self._next

    @property
    def oldest(self) -> int:
        """The running number of the oldest draft still here, in flight too; `added` when empty."""
        return next(iter(self._flight or self._drafts), self._next)

    def add(self, draft: Draft) -> list[Draft]:
        """Append ``draft``; returns what had to be left out for it (rarely itself)."""
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

    def take(self, max_drafts: int, max_bytes: int = 2**20) -> list[Draft]:
        """Put the oldest drafts in flight, at least one if there is any; the same until `land`."""
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

    def land(self) -> None:
        """Forget what is in flight: it has been answered."""
        self._flight = {}

    def since(self, number: int) -> list[Draft]:
        """What is here of the drafts from a running number on, in flight too, in order."""
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
    """Which of the waiting drafts can be spared best.

    A draft is superseded by a later one of its topic and key if the fence
    cannot refuse the later and let the earlier through. So both belong to one
    run: drafts of one job in a topic, of one attempt, none but the last an end.
    """

    def __init__(self) -> None:
        self.superseded: OrderedDict[int, None] = OrderedDict()
        self._plain: OrderedDict[int, None] = OrderedDict()
        # For each topic and job the run that is going on: its attempt, and each key's newest.
        self._runs: dict[tuple[str, str | None], tuple[int | None, dict[str, int]]] = {}

    def add(self, number: int, draft: Draft) -> None:
        """Take in a draft that was appended."""
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
        """Forget a draft that is gone."""
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
        """The running number of what can be spared best; None: there are only ends."""
        return next(iter(self.superseded), next(iter(self._plain), None))
