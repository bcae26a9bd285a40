"""The drafts that the backend has not acknowledged: in order and bounded."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain

from semantik_realtime.core.event import Draft, StateChange
from semantik_realtime.core.limits import SPOOL_BYTES, SPOOL_DRAFTS


class Spool:
    """A bounded queue that makes room by dropping the least important drafts.

    When full it drops as few drafts as possible, in this order: the oldest
    draft whose state a later one of the same topic and key supersedes; the
    oldest draft that does not end an attempt; the oldest end. A draft whose
    body is over ``max_bytes`` is dropped itself. The drafts that `next_batch`
    returned are in flight until `ack`: they count as waiting, but they are not
    dropped and not counted in the bounds.

    >>> spool = Spool(max_drafts=1)
    >>> first, second = (Draft(topic="job:1", type="note", key="1", body=b"{}") for _ in "12")
    >>> spool.add(first), spool.add(second) == [first]
    ([], True)
    >>> spool.next_batch(10) == spool.next_batch(10) == [second]
    True
    >>> spool.ack(), len(spool)
    (None, 0)
    """

    def __init__(self, max_drafts: int = SPOOL_DRAFTS, max_bytes: int = SPOOL_BYTES) -> None:
        self._max_drafts = max_drafts
        self._max_bytes = max_bytes
        # By running number, oldest first, without those in flight.
        self._drafts: OrderedDict[int, Draft] = OrderedDict()
        # The bytes of the bodies in `_drafts`.
        self._bytes = 0
        # Those in flight, by running number; older than all in `_drafts`. It is replaced, never
        # changed, because another thread may read it.
        self._flight: dict[int, Draft] = {}
        # The bytes of the bodies in `_flight`.
        self._flight_bytes = 0
        # The running number of the next draft.
        self._next = 0
        # Which drafts to drop first. Made when the spool first overflows and cleared when it is
        # empty, because keeping it costs time with every draft.
        self._ranks: Ranks | None = None

    def __len__(self) -> int:
        return len(self._drafts) + len(self._flight)

    @property
    def bytes(self) -> int:
        """The bytes of the bodies of all drafts, those in flight included."""
        return self._bytes + self._flight_bytes

    @property
    def added(self) -> int:
        """How many drafts were added since the spool was made."""
        return self._next

    @property
    def oldest(self) -> int:
        """The running number (from 0) of the oldest draft; `added` if the spool is empty."""
        return next(iter(self._flight or self._drafts), self._next)

    def add(self, draft: Draft) -> list[Draft]:
        """Append ``draft``. Return the drafts that were dropped, which may be ``draft`` itself."""
        number, size = self._next, len(draft.body)
        self._next += 1
        if size > self._max_bytes:
            return [draft]
        self._drafts[number] = draft
        self._bytes += size
        if self._ranks is not None:
            self._ranks.add(number, draft)
        dropped: list[Draft] = []
        while len(self._drafts) > self._max_drafts or self._bytes > self._max_bytes:
            dropped.append(self._remove(self._first_to_drop()))
        return dropped

    def next_batch(self, max_drafts: int, max_bytes: int = 2**20) -> list[Draft]:
        """Put the oldest drafts in flight and return them; the same ones again until `ack`.

        They are at most ``max_drafts``, and their bodies have at most
        ``max_bytes`` bytes together unless it is only one.
        """
        if self._flight:
            return list(self._flight.values())
        if len(self._drafts) <= max_drafts and self._bytes <= max_bytes:
            self._flight, self._flight_bytes = self._drafts, self._bytes
            self._drafts, self._bytes, self._ranks = OrderedDict(), 0, None
        else:
            flight: dict[int, Draft] = {}
            size = 0
            while self._drafts and len(flight) < max_drafts:
                number, draft = next(iter(self._drafts.items()))
                if flight and size + len(draft.body) > max_bytes:
                    break
                size += len(draft.body)
                flight[number] = self._remove(number)
            self._flight = flight
            self._flight_bytes = size
        return list(self._flight.values())

    def ack(self) -> None:
        """Remove the drafts in flight: the backend has acknowledged them."""
        self._flight = {}
        self._flight_bytes = 0

    def since(self, number: int) -> list[Draft]:
        """Return the drafts from the running ``number`` on, those in flight included, in order."""
        found: list[Draft] = []
        newest_first = chain(reversed(self._drafts.items()), reversed(self._flight.items()))
        for running, draft in newest_first:
            if running < number:
                break
            found.append(draft)
        return found[::-1]

    def _first_to_drop(self) -> int:
        if self._ranks is None:
            self._ranks = Ranks()
            for number, draft in self._drafts.items():
                self._ranks.add(number, draft)
        first = self._ranks.first()
        return next(iter(self._drafts)) if first is None else first

    def _remove(self, number: int) -> Draft:
        draft = self._drafts.pop(number)
        self._bytes -= len(draft.body)
        if not self._drafts:
            self._ranks = None
        elif self._ranks is not None:
            self._ranks.remove(number, draft)
        return draft


class Ranks:
    """The order in which a spool drops its drafts.

    A later draft supersedes an earlier one of its topic and key only if the
    fence cannot refuse the later one and accept the earlier one. That is so
    within a run: drafts of one topic, one job and one attempt, of which only
    the last may end the attempt.
    """

    def __init__(self) -> None:
        self.superseded: OrderedDict[int, None] = OrderedDict()
        """Running numbers of the drafts that a later one supersedes, oldest first."""
        # Running numbers of the other drafts that do not end an attempt, oldest first.
        self._plain: OrderedDict[int, None] = OrderedDict()
        # The current run of each topic and job: its attempt, and the running number of the newest
        # draft of each key. A run without a key is deleted.
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

    def first(self) -> int | None:
        """Return the running number of the draft to drop first; None if all end an attempt."""
        return next(iter(self.superseded), next(iter(self._plain), None))
