"""The summary of a workflow, from the states of its topic. No clock: the time is an argument.

``summary.js`` is the same for browsers; both are tested with ``tests/vectors/summary.json``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.core.tally import (
    MAX_MEMBERS,
    OUTCOME_OF_STATUS,
    Tally,
    number_of,
    numbers_of,
)

_TIME = re.compile(
    r"([0-9]{4})-(0[1-9]|1[0-2])-([0-2][1-9]|[123]0|31)"
    r"T([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])\.([0-9]{3})Z"
)
RUNNING_STATUSES = frozenset({"running", "retrying", "cancelling"})
MAX_FAILURES = 20
"""Failures of members that a summary names."""


class Failure(msgspec.Struct, frozen=True):
    """A member that did not succeed, and where it is."""

    key: str
    at: str
    name: str
    status: str
    error: Any = None


class Summary(msgspec.Struct, frozen=True):
    """How far a workflow is.

    Each member is counted in one of the first seven numbers, which add up to ``total``. A member
    that ran again after a redelivery counts once, as done if any of its attempts was.
    """

    total: int
    done: int
    failed: int
    cancelled: int
    lost: int
    skipped: int
    """They will not run, because a member before them did not succeed."""
    running: int
    waiting: int
    """Not published, or queued."""
    weight: int | float
    """Of all members; each has the weight 1, unless it was submitted with another."""
    ended_weight: int | float
    """Of the members that have ended, the skipped ones included."""
    running_weight: int | float
    """What is done of the members that run: of each the share that its progress states."""
    rate: float | None
    """Weight a second since the start, with ``running_weight`` and without the skipped members;
    None: nothing to tell it by."""
    seconds_left: float | None
    """None: not known, or the workflow has ended."""
    failures: list[Failure]
    """The first `MAX_FAILURES`, in the order of their numbers."""


def summarize(states: Mapping[str, object], job: str, now_ms: int) -> Summary:
    """Return the summary of the workflow ``job`` from the ``states`` of its topic.

    ``now_ms`` is the time in milliseconds since 1970. States of any shape are accepted; a topic
    without members has the total 0.

    >>> states = {"1": {"workflow": {"total": 2}},
    ...           "a": {"status": "completed", "member": {"n": 0}}}
    >>> summary = summarize(states, "1", 0)
    >>> summary.done, summary.waiting, summary.total
    (1, 1, 2)
    """
    count = Count(states, job)
    own = count.own
    total = done = running = 0
    others = {"failed": 0, "cancelled": 0, "lost": 0, "skipped": 0}
    weight: int | float = 0
    ended_weight: int | float = 0
    worked_weight: int | float = 0
    running_weight: int | float = 0
    runs = _weights(count.flow)
    for giver in sorted(count.tally.givers() | {""}):
        size = count.size(giver)
        parts = count.parts(giver)
        ended = parts["done"]
        total += size
        done += ended.bit_count()
        running += parts["running"].bit_count()
        for outcome in others:
            others[outcome] += parts[outcome].bit_count()
            ended |= parts[outcome]
        worked = ended & ~parts["skipped"]
        shares = count.shares(giver, parts["running"])
        first = 0
        for length, each in [*(runs if giver == "" else []), (MAX_MEMBERS, 1)]:
            length = min(length, size - first)
            while shares and shares[0][0] < first + length:
                running_weight += shares.popleft()[1] * each
            mask = ((1 << length) - 1) << first
            weight += length * each
            ended_weight += (ended & mask).bit_count() * each
            worked_weight += (worked & mask).bit_count() * each
            first += length
    rate = _rate(own, worked_weight + running_weight, now_ms)
    # Fractions may add up to a little more than the whole.
    left = max(0, weight - ended_weight - running_weight)
    return Summary(
        total=total,
        done=done,
        **others,
        running=running,
        waiting=total - done - running - sum(others.values()),
        weight=weight,
        ended_weight=ended_weight,
        running_weight=running_weight,
        rate=rate,
        seconds_left=None if not rate or has_ended(own) else left / rate,
        failures=count.failures()[:MAX_FAILURES],
    )


class Count:
    """What the states of a topic say about the members of a workflow."""

    def __init__(self, states: Mapping[str, object], job: str) -> None:
        self.own = _mapping(states.get(job))
        """The state of the workflow itself."""
        self.flow = _mapping(self.own.get("workflow"))
        self.tally = Tally()
        """Everything that has ended: the tallies' members, and those with a state."""
        self.members: list[tuple[str, int, str, Mapping[str, Any]]] = []
        """Giver, number, key and state of each member that has a state."""
        # By giver: numbers of members with a state, and of those that run.
        self._seen: dict[str, int] = {}
        self._running: dict[str, int] = {}
        # By giver and number, how much of a member that runs is done, if its state tells it.
        self._shares: dict[str, dict[int, float]] = {}
        for key, state in states.items():
            if isinstance(state, Mapping):
                self.tally.merge(state.get("tally"))
                if isinstance(state.get("member"), Mapping):
                    self._add(key, state)
        self.members.sort(key=lambda member: member[:3])

    def size(self, giver: str) -> int:
        """Return how many members ``giver`` has numbered, as far as it is known."""
        known = number_of(self.flow.get("total")) or 0 if giver == "" else 0
        seen = self._seen.get(giver, 0)
        for sets in self.tally.sets.values():
            seen |= sets.get(giver, 0)
        return max(known, self.tally.published.get(giver, 0), seen.bit_length())

    def parts(self, giver: str) -> dict[str, int]:
        """Return the sets of numbers of ``giver`` by outcome and ``running``; they are disjoint."""
        parts, taken = {}, 0
        for part in ("done", "running", "failed", "cancelled", "lost", "skipped"):
            numbers = (
                self._running.get(giver, 0)
                if part == "running"
                else self.tally.numbers(part, giver)
            )
            parts[part] = numbers & ~taken
            taken |= numbers
        return parts

    def shares(self, giver: str, running: int) -> deque[tuple[int, float]]:
        """Return, for each of the numbers ``running`` of ``giver`` whose state tells it, the share
        that is done; in the order of the numbers.
        """
        found = sorted(self._shares.get(giver, {}).items())
        return deque((number, share) for number, share in found if running >> number & 1)

    def failures(self) -> list[Failure]:
        """Return the members that did not succeed and still have a state."""
        return [
            Failure(
                key,
                _text(_mapping(state.get("member")).get("at")),
                _text(state.get("name")),
                state["status"],
                state.get("error"),
            )
            for _, _, key, state in self.members
            if state.get("status") in ("failed", "cancelled", "lost")
        ]

    def _add(self, key: str, state: Mapping[str, Any]) -> None:
        member = state["member"]
        number = number_of(member.get("n"))
        giver = member.get("of", "")
        if number is None or number == MAX_MEMBERS or not isinstance(giver, str):
            return
        bit = 1 << number
        status = state.get("status")
        outcome = OUTCOME_OF_STATUS.get(status) if isinstance(status, str) else None
        # Tells the tally the giver, too.
        self.tally.publish(giver, 0)
        if giver not in self.tally.published:
            return
        self._seen[giver] = self._seen.get(giver, 0) | bit
        self.members.append((giver, number, key, state))
        if outcome is not None:
            skipped = 0 if outcome == "done" else numbers_of(member.get("skips"))
            self.tally.add(giver, number, outcome, skipped)
        elif isinstance(status, str) and status in RUNNING_STATUSES:
            self._running[giver] = self._running.get(giver, 0) | bit
            share = _share(state)
            if share > 0:
                shares = self._shares.setdefault(giver, {})
                shares[number] = max(share, shares.get(number, 0))


def _rate(own: Mapping[str, Any], worked: int | float, now_ms: int) -> float | None:
    started = milliseconds_of(own.get("started_at"))
    end = milliseconds_of(own.get("ended_at")) if has_ended(own) else now_ms
    if started is None or end is None or end <= started or not worked:
        return None
    return worked * 1000 / (end - started)


def _share(state: Mapping[str, Any]) -> float:
    """Return how much of a member is done, from 0 to 1; 0: it does not run, or has no total."""
    # One that waits for its next attempt begins anew.
    if state.get("status") not in ("running", "cancelling"):
        return 0
    progress = _mapping(state.get("progress"))
    current, total = _amount(progress.get("current")), _amount(progress.get("total"))
    return min(current / total, 1) if total else 0


def _amount(value: object) -> float:
    """Return a number of a progress; 0 if it is none, or not above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        return 0
    return value


def _weights(flow: Mapping[str, Any]) -> list[tuple[int, int | float]]:
    """Return the runs of equal weights of the submitted members: length and weight."""
    runs = flow.get("weights")
    found: list[tuple[int, int | float]] = []
    for run in runs if isinstance(runs, list) else []:
        if not isinstance(run, list) or len(run) != 2 or number_of(run[0]) is None:
            return []
        if isinstance(run[1], bool) or not isinstance(run[1], int | float) or run[1] < 0:
            return []
        found.append((run[0], run[1]))
    return found


def milliseconds_of(text: object) -> int | None:
    """Return a time of a state in milliseconds since 1970; None if it is none.

    >>> milliseconds_of("1970-01-01T00:00:01.500Z"), milliseconds_of("yesterday")
    (1500, None)
    """
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    year, month, day, hour, minute, second, millisecond = map(int, found.groups())
    # Years that begin in March have the leap day at their end.
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day
    return (((days - 719469) * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + millisecond


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
