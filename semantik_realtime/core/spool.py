"""Drafts on their way to the backend: in order, bounded, the least important dropped first."""

from __future__ import annotations

from collections import OrderedDict

from semantik_realtime.core.event import Draft, StateChange


class Spool:
    """A bounded queue that makes room by leaving out what matters least.

    When full it drops, in this order and no more than it must: the oldest
    draft whose state a later one of the same topic and key supersedes; the
    oldest draft that does not end an attempt; and only when nothing else is
    left, the oldest end. A draft over ``max_bytes`` is left out itself. What
    was taken with `take` is out of reach: it is in flight.
    """

    def __init__(self, max_drafts: int = 10_000, max_bytes: int = 16 * 2**20) -> None:
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._drafts: OrderedDict[int, Draft] = OrderedDict()
        self._next = 0
        # Costs nothing before there is a reason to choose: made when room first runs short,
        # and kept until all is gone.
        self._ranks: Ranks | None = None
        self.bytes = 0
        """Of the bodies."""
        self.dropped = 0
        """Drafts left out so far, superseded ones included."""

    def __len__(self) -> int:
        return len(self._drafts)

    @property
    def added(self) -> int:
        """How many drafts were ever added."""
        return self._next

    @property
    def oldest(self) -> int:
        """The running number of the oldest draft still here; `added` when empty."""
        return next(iter(self._drafts), self._next)

    def add(self, draft: Draft) -> list[Draft]:
        """Append ``draft``; returns what had to be left out for it (rarely itself)."""
        number = self._next
        self._next += 1
        if len(draft.body) > self._max_bytes:
            self.dropped += 1
            return [draft]
        self._drafts[number] = draft
        self.bytes += len(draft.body)
        if self._ranks is not None:
            self._ranks.add(number, draft)
        lost: list[Draft] = []
        while len(self._drafts) > self._max_drafts or self.bytes > self._max_bytes:
            lost.append(self._remove(self._least()))
        self.dropped += len(lost)
        return lost

    def take(
        self, max_drafts: int, max_bytes: int = 2**20, before: int | None = None
    ) -> list[Draft]:
        """Remove and return the oldest drafts, at least one if there is any.

        ``before`` is a running number: that draft and what follows it stay.
        """
        batch: list[Draft] = []
        size = 0
        while self._drafts and len(batch) < max_drafts:
            number, draft = next(iter(self._drafts.items()))
            if batch and size + len(draft.body) > max_bytes:
                break
            if before is not None and number >= before:
                break
            size += len(draft.body)
            batch.append(self._remove(number))
        return batch

    def since(self, number: int) -> list[Draft]:
        """What is here of the drafts from a running number on, in order."""
        found: list[Draft] = []
        for running, draft in reversed(self._drafts.items()):
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
        return self.oldest if least is None else least

    def _remove(self, number: int) -> Draft:
        draft = self._drafts.pop(number)
        self.bytes -= len(draft.body)
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
