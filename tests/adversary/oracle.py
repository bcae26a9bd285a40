"""The true log, and whether what a watcher was shown agrees with it. No I/O.

Publishers number their events 0, 1, 2 … in each topic. A watcher's `Judge` gets what it is shown,
in the order in which it is shown it, and finds a broken guarantee at once (G1 to G3); what can be
judged only when everything rests is compared with the `Truth`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

REWRITES = frozenset({"epoch", "diverged", "ahead", "recalled"})
"""Reasons of a snapshot that say: the log that the watcher knew is lost, another one goes on."""


class Truth(msgspec.Struct, frozen=True):
    """A topic when everything rests: what was published, and what its engine has."""

    published: int
    """How many events were published; their numbers are 0 to ``published - 1``."""
    log: tuple[tuple[int, int], ...]
    """Offset and number of the events that the log has, oldest first."""
    cursor: str
    """The position of the log's end."""
    states: Mapping[str, Any]
    first_kept: int = 0
    """Events before this number may be missing from the log: it is bounded."""

    @property
    def lost(self) -> list[int]:
        """Numbers that were acknowledged, and are in the log no more although it is not full."""
        kept = {number for _, number in self.log}
        return [number for number in range(self.first_kept, self.published) if number not in kept]

    def faults(self) -> list[str]:
        """What is wrong in the log itself, whatever the watchers were shown."""
        numbers = [number for _, number in self.log]
        offsets = [offset for offset, _ in self.log]
        found = []
        if len(set(numbers)) != len(numbers):
            found.append("G2: the log has an event twice")
        if numbers != sorted(numbers) or offsets != sorted(offsets):
            found.append("G1: the log is not in the order of publishing")
        return found


class Judge:
    """Follows one watcher of one topic.

    >>> judge = Judge("page")
    >>> judge.told("new", None)
    >>> for offset, number in ((1, 0), (2, 1), (4, 3)):
    ...     judge.shown(offset, number)
    >>> judge.faults
    ['G3: 1 event before 3 is missing, and the watcher was told of 0 since 1']
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[str] = []
        """The guarantees that were broken, oldest first."""
        self.reasons: list[str] = []
        """What the watcher was told in place of events."""
        self.repeated = 0
        """Events shown a second time after the log was rewritten: it was published again."""
        self.count = 0
        """Events shown."""
        # The newest number, and its offset; None: since the log was rewritten there was none.
        self._last: int | None = None
        self._offset = 0
        # How many events the watcher was told of since the newest one.
        self._covered = 0.0
        # The numbers that were shown, each with how often the log was rewritten before.
        self._seen: dict[int, int] = {}
        self._rewritten = 0
        # The numbers that were shown since the watcher was told that the log is another one.
        self._valid: set[int] = set()

    def told(
        self,
        reason: str,
        events: int | None,
        *,
        rewrites: bool | None = None,
        replaces: bool = False,
    ) -> None:
        """Note that the watcher was told of ``events`` that it does not get; None: of any.

        ``rewrites``: another log goes on, in which events may come again; None: as the reason says.
        ``replaces``: what was shown before counts no more, and still no event may come again. So
        it is on a wire that gives no reasons.
        """
        self.reasons.append(reason)
        self._covered += math.inf if events is None else events
        if replaces:
            self._valid.clear()
        if reason in REWRITES if rewrites is None else rewrites:
            self._rewritten += 1
            self._valid.clear()
            self._last, self._offset, self._covered = None, 0, math.inf

    def shown(self, offset: int, number: int) -> None:
        """Note an event that the watcher was shown."""
        self.count += 1
        before = self._seen.get(number)
        if before == self._rewritten:
            self.faults.append(f"G2: event {number} was shown twice")
        elif before is not None:
            self.repeated += 1
        elif self._last is not None and number < self._last:
            self.faults.append(f"G1: event {number} was shown after {self._last}")
        if offset <= self._offset:
            self.faults.append(f"G1: offset {offset} was shown after {self._offset}")
        if before is None:
            self._check_gap(number)
        self._seen[number] = self._rewritten
        self._valid.add(number)
        self._last, self._offset, self._covered = number, offset, 0.0

    def rest(self, truth: Truth, cursor: str | None, states: Mapping[str, Any]) -> None:
        """Compare with the truth, when the watcher should have everything."""
        if cursor != truth.cursor:
            self.faults.append(f"G3: the watcher rests at {cursor}, the log at {truth.cursor}")
        if dict(states) != dict(truth.states):
            self.faults.append(f"state: the watcher has {states}, the log {truth.states}")
        if any(number >= truth.published for number in self._seen):
            self.faults.append("G1: an event was shown that nobody published")
        self._check_gap(truth.published)
        # An event that the log has lost, and that was shown: the watcher must know of the loss.
        silent = [number for number in truth.lost if number in self._valid]
        if silent:
            self.faults.append(f"G7: the log has lost {silent}, and the watcher was not told")
        if truth.published:
            self._last, self._covered = truth.published - 1, 0.0

    def _check_gap(self, number: int) -> None:
        if self._last is None:
            missing = 0 if self._covered else number
        else:
            missing = max(number - self._last - 1, 0)
        if missing > self._covered:
            events = "event" if missing == 1 else "events"
            self.faults.append(
                f"G3: {missing} {events} before {number} is missing, and the watcher was told of "
                f"{self._covered:g} since {self._last}"
            )
