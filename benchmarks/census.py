"""What became of numbered events: counted, not assumed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Census(msgspec.Struct, frozen=True):
    """How many events were lost, came twice, or came after a later one."""

    lost: int = 0
    doubled: int = 0
    disordered: int = 0

    def __add__(self, other: Census) -> Census:
        return Census(
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.disordered + other.disordered,
        )

    def __or__(self, other: Census) -> Census:
        """Two looks at the same events: the worse of both."""
        return Census(
            max(self.lost, other.lost),
            max(self.doubled, other.doubled),
            max(self.disordered, other.disordered),
        )

    @property
    def is_clean(self) -> bool:
        """Whether everything came, once and in order."""
        return self == Census()


def take_census(seen: Sequence[int], expected: int | None = None) -> Census:
    """Compare the numbers that came with 0, 1, 2 … ``expected`` - 1; None: up to the highest.

    >>> take_census([0, 1, 1, 4, 3], 6)
    Census(lost=2, doubled=1, disordered=1)
    """
    if expected is None:
        expected = max(seen, default=-1) + 1
    if len(seen) == expected and all(number == place for place, number in enumerate(seen)):
        return Census()
    known: set[int] = set()
    highest = -1
    doubled = disordered = 0
    for number in seen:
        if number in known:
            doubled += 1
        elif number < highest:
            disordered += 1
        known.add(number)
        highest = max(highest, number)
    return Census(len(set(range(expected)) - known), doubled, disordered)
