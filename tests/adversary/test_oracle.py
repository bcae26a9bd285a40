"""The oracle accepts what is right, and finds each mutation of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import REWRITES, Judge, Truth

STATES = {"1": {"status": "running"}}


def truth(published: int, log: list[tuple[int, int]] | None = None) -> Truth:
    if log is None:
        log = [(number + 1, number) for number in range(published)]
    return Truth(published, tuple(log), "e.9.0", STATES)


def judged(
    shown: list[tuple[int, int]], published: int, *, cursor: str = "e.9.0", **states: object
) -> list[str]:
    """Return the faults of a watcher that saw the log from its beginning."""
    judge = Judge("page")
    judge.told("new", 0)
    for offset, number in shown:
        judge.shown(offset, number)
    judge.rest(truth(published), cursor, states or STATES)
    return judge.faults


def whole(published: int) -> list[tuple[int, int]]:
    return [(number + 1, number) for number in range(published)]


@given(st.integers(0, 50))
def test_the_true_log_has_no_fault(published: int) -> None:
    assert judged(whole(published), published) == []
    assert truth(published).faults() == []
    assert truth(published).lost == []


@given(st.integers(1, 50), st.data())
def test_a_lost_event_is_found(published: int, data: st.DataObject) -> None:
    shown = whole(published)
    del shown[data.draw(st.integers(0, published - 1))]
    assert any(fault.startswith("G3") for fault in judged(shown, published))


@given(st.integers(1, 50), st.data())
def test_a_doubled_event_is_found(published: int, data: st.DataObject) -> None:
    shown = whole(published)
    at = data.draw(st.integers(0, published - 1))
    shown.insert(data.draw(st.integers(at + 1, published)), shown[at])
    assert any(fault.startswith("G2") for fault in judged(shown, published))


@given(st.integers(2, 50), st.data())
def test_a_swapped_pair_is_found(published: int, data: st.DataObject) -> None:
    shown = whole(published)
    at = data.draw(st.integers(0, published - 2))
    shown[at : at + 2] = reversed(shown[at : at + 2])
    assert any(fault.startswith("G1") for fault in judged(shown, published))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 40))
def test_a_gap_is_right_only_if_it_is_told_in_full(before: int, missing: int, told: int) -> None:
    judge = Judge("page")
    for offset, number in whole(before):
        judge.shown(offset, number)
    judge.told("conflated", told)
    judge.shown(before + missing + 1, before + missing)
    assert bool(judge.faults) == (told < missing)


def test_what_was_told_covers_no_later_gap() -> None:
    judge = Judge("page")
    judge.told("trimmed", None)
    judge.shown(5, 4)
    judge.shown(7, 6)
    assert [fault[:2] for fault in judge.faults] == ["G3"]


def test_a_wrong_state_or_position_at_rest_is_found() -> None:
    assert [f[:5] for f in judged(whole(3), 3, **{"1": {"status": "completed"}})] == ["state"]
    assert [f[:2] for f in judged(whole(3), 3, cursor="e.8.0")] == ["G3"]
    assert any("nobody published" in fault for fault in judged(whole(4), 3))


@pytest.mark.parametrize("reason", [*sorted(REWRITES), "trimmed", "conflated"])
def test_a_loss_of_the_engine_is_silent_unless_a_rewritten_log_is_told(reason: str) -> None:
    judge = Judge("page")
    for offset, number in whole(4):
        judge.shown(offset, number)
    rewritten = truth(4, whole(2))
    assert rewritten.lost == [2, 3]
    judge.told(reason, None)
    judge.rest(rewritten, "e.9.0", STATES)
    assert [f[:2] for f in judge.faults] == ([] if reason in REWRITES else ["G7"])


def test_an_event_comes_again_only_after_a_rewritten_log() -> None:
    judge = Judge("page")
    for offset, number in whole(3):
        judge.shown(offset, number)
    judge.told("diverged", None)
    judge.shown(3, 2)
    assert (judge.faults, judge.repeated) == ([], 1)
    judge.shown(3, 2)
    assert [fault[:2] for fault in judge.faults] == ["G2", "G1"]


def test_a_state_that_replaces_what_was_shown_lets_no_event_come_again() -> None:
    judge = Judge("page")
    for offset, number in whole(4):
        judge.shown(offset, number)
    judge.told("current_state", None, replaces=True)
    judge.rest(truth(4, whole(2)), "e.9.0", STATES)
    assert judge.faults == []
    judge.shown(5, 3)
    assert [fault[:2] for fault in judge.faults] == ["G2"]


def test_a_log_that_is_wrong_itself_is_found() -> None:
    assert [f[:2] for f in truth(2, [(1, 0), (2, 1), (3, 1)]).faults()] == ["G2"]
    assert [f[:2] for f in truth(2, [(1, 1), (2, 0)]).faults()] == ["G1"]
