"""Measurements: how long numbered events took, and which of them went astray."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import msgspec


class MeasurementFailed(Exception):
    """There is no measurement: a process ended early, or something did not happen in time."""


class DeliveryErrors(msgspec.Struct, frozen=True):
    """How many events were lost, arrived again, or arrived after a later one."""

    lost: int = 0
    doubled: int = 0
    disordered: int = 0

    def __add__(self, other: DeliveryErrors) -> DeliveryErrors:
        """Return the sum: the counts are of different events."""
        return DeliveryErrors(
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.disordered + other.disordered,
        )

    def __or__(self, other: DeliveryErrors) -> DeliveryErrors:
        """Return the higher of each: the counts are of the same events, made in two ways."""
        return DeliveryErrors(
            max(self.lost, other.lost),
            max(self.doubled, other.doubled),
            max(self.disordered, other.disordered),
        )

    @property
    def is_clean(self) -> bool:
        """Whether every event arrived, once and in order."""
        return self == DeliveryErrors()


class Measurement(msgspec.Struct):
    """One round of one row."""

    events: int
    seconds: float
    errors: DeliveryErrors
    facts: dict[str, Any] = {}
    """Further figures, by their names in the JSON."""

    @property
    def events_per_second(self) -> float:
        """The rate of this round."""
        return self.events / self.seconds


def count_errors(numbers: Sequence[int], expected: int | None = None) -> DeliveryErrors:
    """Compare the numbers that arrived with 0, 1, 2 … ``expected`` - 1.

    Without ``expected``, the highest number that arrived is taken for the last one.

    >>> count_errors([0, 1, 1, 4, 3], 6)
    DeliveryErrors(lost=2, doubled=1, disordered=1)
    """
    if expected is None:
        expected = max(numbers, default=-1) + 1
    if len(numbers) == expected and all(number == place for place, number in enumerate(numbers)):
        return DeliveryErrors()
    known: set[int] = set()
    highest = -1
    doubled = disordered = 0
    for number in numbers:
        if number in known:
            doubled += 1
        elif number < highest:
            disordered += 1
        known.add(number)
        highest = max(highest, number)
    return DeliveryErrors(len(set(range(expected)) - known), doubled, disordered)


def percentiles(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """Return the 50th, 95th and 99th percentile; None for fewer than two values.

    >>> percentiles([1.0, 2.0, 3.0])
    {'p50': 2.0, 'p95': 2.9, 'p99': 2.98}
    """
    if len(milliseconds) < 2:
        return None
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return {f"p{place}": round(cuts[place - 1], 2) for place in (50, 95, 99)}
