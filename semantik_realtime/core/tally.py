"""Which members of a workflow have ended: sets that only grow, so that none counts twice.

A member has a place: who gave it its number (``of``; empty for the members that were submitted)
and that number. A set of numbers is an `int` whose bit n stands for the number n; a tally is the
union of such sets, whoever reports them, how often, and in which order (docs/workflows.md).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Set
from typing import Any

MAX_MEMBERS = 100_000
"""Members that one giver of numbers can number; their sets have at most 16 KiB as JSON."""
MAX_GIVERS = 1000
"""Givers of numbers whose members a tally counts; members of further ones are not counted."""
OUTCOMES = ("done", "failed", "cancelled", "lost", "skipped")
"""How a member ended. ``skipped``: it will not run, because a member before it did not succeed."""
OUTCOME_OF_STATUS: Mapping[str, str] = {
    "completed": "done",
    "failed": "failed",
    "cancelled": "cancelled",
    "lost": "lost",
}


def encode_numbers(bits: int) -> str:
    """Return a set of numbers as text: the first byte that is not zero, and the bytes from there.

    >>> encode_numbers(0b101), encode_numbers(1 << 16), encode_numbers(0)
    ('0:BQ==', '2:AQ==', '')
    """
    if not bits:
        return ""
    first = ((bits & -bits).bit_length() - 1) // 8
    kept = bits >> (8 * first)
    data = kept.to_bytes((kept.bit_length() + 7) // 8, "little")
    return f"{first}:{base64.b64encode(data).decode()}"


def decode_numbers(text: object) -> int:
    """Return the set that `encode_numbers` wrote; the empty one for whatever it did not write.

    >>> decode_numbers(encode_numbers(0b1010)) == 0b1010, decode_numbers("rubbish")
    (True, 0)
    """
    first, colon, data = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not (first.isascii() and first.isdigit()) or len(first) > 6:
        return 0
    try:
        bits = int.from_bytes(base64.b64decode(data, validate=True), "little") << (8 * int(first))
    except (binascii.Error, ValueError):
        return 0
    return bits if bits.bit_length() <= MAX_MEMBERS else 0


def numbers_of(ranges: object) -> int:
    """Return the set of all numbers in ``ranges``, pairs of a first number and the one after the
    last.

    >>> bin(numbers_of([[1, 3], [4, 5]])), numbers_of([[3, 1], "x"])
    ('0b10110', 0)
    """
    bits = 0
    for pair in ranges if isinstance(ranges, list | tuple) else ():
        if isinstance(pair, list | tuple) and len(pair) == 2:
            first, end = number_of(pair[0]), number_of(pair[1])
            if first is not None and end is not None and first < end:
                bits |= (1 << end) - (1 << first)
    return bits


def number_of(value: object) -> int | None:
    """Return ``value`` if it is the number of a member, from 0 to `MAX_MEMBERS`."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_MEMBERS:
        return value
    return None


class Tally:
    """The members that have ended, by outcome and giver, and how many each giver has numbered.

    >>> tally = Tally()
    >>> tally.add("", 3, "done")
    >>> other = Tally()
    >>> other.merge(tally.as_state())
    >>> other.merge(tally.as_state())
    >>> other.numbers("done", ""), other.as_state()
    (8, {'done': {'': '0:CA=='}})
    """

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, int]] = {outcome: {} for outcome in OUTCOMES}
        """By outcome and giver."""
        self.published: dict[str, int] = {}
        """By giver, how many members it has published; of those that publish within members."""
        self._givers: set[str] = set()

    def numbers(self, outcome: str, giver: str) -> int:
        """Return the set of the members of ``giver`` that ended with ``outcome``."""
        return self.sets[outcome].get(giver, 0)

    def add(self, giver: str, number: int, outcome: str, skipped: int = 0) -> None:
        """Count one member, and the set of those that are skipped for it."""
        if number < MAX_MEMBERS:
            self._unite(outcome, giver, 1 << number)
            if skipped:
                self._unite("skipped", giver, skipped)

    def publish(self, giver: str, count: int) -> None:
        """``giver`` has published ``count`` members so far."""
        if self._admits(giver):
            self.published[giver] = max(count, self.published.get(giver, 0))

    def merge(self, state: object) -> None:
        """Add what another tally has counted, as `as_state` returned it. What has another shape is
        left out.
        """
        if not isinstance(state, Mapping):
            return
        for outcome in OUTCOMES:
            for giver, text in _texts(state.get(outcome)):
                self._unite(outcome, giver, decode_numbers(text))
        for giver, count in _texts(state.get("published")):
            known = number_of(count)
            if known is not None:
                self.publish(giver, known)

    def as_state(self) -> dict[str, Any]:
        """Return the tally as a member of a state."""
        state: dict[str, Any] = {
            outcome: {giver: encode_numbers(bits) for giver, bits in sorted(sets.items()) if bits}
            for outcome, sets in self.sets.items()
        }
        state["published"] = dict(sorted(self.published.items()))
        return {name: value for name, value in state.items() if value}

    def givers(self) -> Set[str]:
        """Return all who have numbered a member."""
        return self._givers

    def _unite(self, outcome: str, giver: str, bits: int) -> None:
        if bits and self._admits(giver):
            sets = self.sets[outcome]
            sets[giver] = sets.get(giver, 0) | bits

    def _admits(self, giver: str) -> bool:
        if giver not in self._givers:
            if len(self._givers) >= MAX_GIVERS:
                return False
            self._givers.add(giver)
        return True


def _texts(value: object) -> list[tuple[str, object]]:
    return list(value.items()) if isinstance(value, Mapping) else []
