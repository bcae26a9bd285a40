"""A count that cannot fail counts nothing."""

from __future__ import annotations

import pytest

from benchmarks.census import Census, take_census


@pytest.mark.parametrize(
    ("seen", "expected", "census"),
    [
        ([], 0, Census()),
        ([0, 1, 2], 3, Census()),
        ([], 2, Census(lost=2)),
        ([0, 2], 3, Census(lost=1)),
        ([0, 1], 3, Census(lost=1)),
        ([1, 2], 3, Census(lost=1)),
        ([0, 1, 1, 2], 3, Census(doubled=1)),
        ([0, 2, 1], 3, Census(disordered=1)),
        ([0, 1, 2, 0, 1, 2], 3, Census(doubled=3)),
        ([0, 0, 2], 3, Census(lost=1, doubled=1)),
    ],
)
def test_what_is_missing_repeated_or_late_is_counted(
    seen: list[int], expected: int, census: Census
) -> None:
    assert take_census(seen, expected) == census
    assert census.is_clean == (seen == list(range(expected)))


def test_without_an_expectation_the_holes_are_what_is_lost() -> None:
    assert take_census([0, 1, 2]) == take_census([]) == Census()
    assert take_census([0, 3, 3]) == Census(lost=2, doubled=1)


def test_parts_are_summed_and_looks_at_the_same_events_are_not() -> None:
    assert Census(lost=1) + Census(lost=2, doubled=1) == Census(lost=3, doubled=1)
    assert Census(lost=1) | Census(lost=2, doubled=1) == Census(lost=2, doubled=1)
