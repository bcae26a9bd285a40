"""Drafts on their way to the backend: in order, bounded, the least important dropped first."""

from __future__ import annotations

from collections import OrderedDict

from semantik_realtime.core.event import Draft, StateChange


class Spool:
    """A bounded queue that makes room by leaving out what matters least.

    When full it drops, in this order: a draft whose state a later one of the
    same topic and key supersedes; the oldest draft that does not end an
    attempt; and only when nothing else is left, the oldest end. A draft over
    ``max_bytes`` is left out itself. What was taken with `take` is out of
    reach: it is in flight, and its numbers are given.
    """

    def __init__(self, max_drafts: int = 10_000, max_bytes: int = 16 * 2**20) -> None:
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        self._drafts: OrderedDict[int, Draft] = OrderedDict()
        self._next = 0
        self.bytes = 0
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
        lost: list[Draft] = []
        if not self._fits():
            lost += self._conflate()
        if not self._fits():
            lost += self._shed(newest=number)
        self.dropped += len(lost)
        return lost

    def take(self, max_drafts: int, max_bytes: int = 2**20) -> list[Draft]:
        """Remove and return the oldest drafts, at least one if there is any."""
        batch: list[Draft] = []
        size = 0
        while self._drafts and len(batch) < max_drafts:
            number, draft = next(iter(self._drafts.items()))
            if batch and size + len(draft.body) > max_bytes:
                break
            size += len(draft.body)
            batch.append(self._remove(number))
        return batch

    def _conflate(self) -> list[Draft]:
        # The fence must not refuse the later draft and let the earlier one through. So both
        # belong to one run: drafts of one job in a topic, of one attempt, without an end
        # before the last of them.
        runs: dict[tuple[str, str | None], tuple[int | None, int]] = {}
        seen: set[tuple[int, str]] = set()
        superseded: list[int] = []
        for number, draft in reversed(self._drafts.items()):
            scope = (draft.topic, draft.job)
            attempt, run = runs.get(scope, (None, -1))
            if run < 0 or draft.terminal or draft.attempt != attempt:
                run = number
                runs[scope] = (draft.attempt, run)
            if draft.change is StateChange.KEEP:
                continue
            if (run, draft.key) in seen:
                superseded.append(number)
            seen.add((run, draft.key))
        return [self._remove(number) for number in reversed(superseded)]

    def _shed(self, newest: int) -> list[Draft]:
        # A tenth at once, of what is neither an end nor the newest: making room for one
        # draft costs a walk over all of them.
        room_drafts = self._max_drafts - self._max_drafts // 10
        room_bytes = self._max_bytes - self._max_bytes // 10
        lost: list[Draft] = []
        for number in sorted(self._drafts, key=lambda number: self._drafts[number].terminal):
            is_roomy = len(self._drafts) <= room_drafts and self.bytes <= room_bytes
            is_dear = number == newest or self._drafts[number].terminal
            if is_roomy or (is_dear and self._fits()):
                break
            lost.append(self._remove(number))
        return lost

    def _fits(self) -> bool:
        return len(self._drafts) <= self._max_drafts and self.bytes <= self._max_bytes

    def _remove(self, number: int) -> Draft:
        draft = self._drafts.pop(number)
        self.bytes -= len(draft.body)
        return draft
