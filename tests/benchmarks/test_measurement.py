"""Every event that goes astray is counted."""

from __future__ import annotations

import doctest
import importlib

import pytest

from benchmarks.measurement import DeliveryErrors, MeasurementFailed, count_errors
from benchmarks.polling import wait_until

MODULES = ("burst", "measurement", "plot", "traffic")


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_the_docstrings_are_true(module: str) -> None:
    if module == "plot":
        pytest.importorskip("matplotlib")
    results = doctest.testmod(importlib.import_module(f"benchmarks.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(
    ("numbers", "expected", "errors"),
    [
        ([], 0, DeliveryErrors()),
        ([0, 1, 2], 3, DeliveryErrors()),
        ([], 2, DeliveryErrors(lost=2)),
        ([0, 2], 3, DeliveryErrors(lost=1)),
        ([0, 1], 3, DeliveryErrors(lost=1)),
        ([1, 2], 3, DeliveryErrors(lost=1)),
        ([0, 1, 1, 2], 3, DeliveryErrors(doubled=1)),
        ([0, 2, 1], 3, DeliveryErrors(disordered=1)),
        ([0, 1, 2, 0, 1, 2], 3, DeliveryErrors(doubled=3)),
        ([0, 0, 2], 3, DeliveryErrors(lost=1, doubled=1)),
    ],
)
def test_missing_repeated_and_late_events_are_counted(
    numbers: list[int], expected: int, errors: DeliveryErrors
) -> None:
    assert count_errors(numbers, expected) == errors
    assert errors.is_clean == (numbers == list(range(expected)))


def test_without_an_expected_number_only_gaps_count_as_lost() -> None:
    assert count_errors([0, 1, 2]) == count_errors([]) == DeliveryErrors()
    assert count_errors([0, 3, 3]) == DeliveryErrors(lost=2, doubled=1)


def test_errors_of_different_events_are_added_and_two_counts_of_the_same_are_not() -> None:
    one, other = DeliveryErrors(lost=1), DeliveryErrors(lost=2, doubled=1)
    assert one + other == DeliveryErrors(lost=3, doubled=1)
    assert one | other == DeliveryErrors(lost=2, doubled=1)


def test_waiting_ends_when_the_condition_holds_and_fails_when_the_time_is_over() -> None:
    answers = iter([OSError(), False, True])

    def condition() -> bool:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    wait_until(condition, 10, "three answers", poll_seconds=0.001, ignored=(OSError,))
    assert list(answers) == []
    with pytest.raises(MeasurementFailed, match=r"waited 0.01 s in vain: the sky falls"):
        wait_until(lambda: False, 0.01, "the sky falls", poll_seconds=0.001)
    with pytest.raises(KeyError):
        wait_until(lambda: {}["missing"], 10, "a key", ignored=(OSError,))
