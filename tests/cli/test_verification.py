"""How a run of ``semantik-realtime verify`` is judged: each broken guarantee by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semantik_realtime.cli.verification import STEP, Finding, Record, Run, judge

FINAL = {"status": "completed", "progress": {"current": 4, "total": 4}}


def watched(*numbers: int, snapshot_at: int = 0) -> Record:
    """A watcher that was shown these numbers, and everything else as it should be."""
    record = Record("socket 1")
    record.sync(snapshot_at, "new")
    for number in numbers:
        record.event({"type": STEP, "offset": number, "data": {"n": number}}, 0.001)
    record.event({"type": "job_completed", "offset": 5}, 0.001)
    record.end_delay, record.state = 0.2, FINAL
    return record


def run_of(record: Record, **members: Any) -> Run:
    given: dict[str, Any] = {
        "offsets": {number: number for number in range(1, 5)},
        "last": 4,
        "records": [record],
        "acknowledged": [0.001, 0.002],
        "foreign": "denied",
        "anonymous": "denied",
        "rest": FINAL,
    }
    return Run(**{**given, **members})


def broken(run: Run) -> list[str]:
    return [finding.subject for finding in judge(run) if finding.is_right is False]


def finding(run: Run, subject: str) -> Finding:
    [found] = [one for one in judge(run) if one.subject == subject]
    return found


def test_a_run_without_a_fault_breaks_nothing() -> None:
    assert broken(run_of(watched(1, 2, 3, 4))) == []
    assert broken(run_of(watched(3, 4, snapshot_at=2))) == []


@pytest.mark.parametrize(
    ("numbers", "guarantees"),
    [
        ([1, 3, 2, 4], ["G1 order"]),
        ([1, 2, 2, 3, 4], ["G2 once"]),
        ([1, 2, 3, 4, 2], ["G1 order", "G2 once"]),
        ([1, 2, 4], ["G3 no silent gap"]),
        ([1, 2, 3], ["G3 no silent gap"]),
        ([], ["G3 no silent gap"]),
    ],
)
def test_events_in_disorder_twice_or_missing_are_found(
    numbers: list[int], guarantees: list[str]
) -> None:
    assert broken(run_of(watched(*numbers))) == guarantees


def test_a_gap_with_a_snapshot_is_none_and_its_reason_is_reported() -> None:
    record = Record("socket 1")
    record.sync(0, "new")
    record.event({"type": STEP, "offset": 1, "data": {"n": 1}}, 0.001)
    record.sync(3, "too_far_behind")
    record.event({"type": STEP, "offset": 4, "data": {"n": 4}}, 0.001)
    record.end_delay, record.state = 0.2, FINAL
    run = run_of(record)
    assert broken(run) == []
    assert (
        "2 events were left out and reported (too_far_behind)"
        in finding(run, "G3 no silent gap").text
    )


def without_end(record: Record) -> None:
    record.end_delay = None


def with_late_end(record: Record) -> None:
    record.end_delay = 31.0


def with_old_state(record: Record) -> None:
    record.state = {"status": "running", "progress": {"current": 3, "total": 4}}


@pytest.mark.parametrize(
    ("change", "guarantee"),
    [
        (without_end, "G4 the end"),
        (with_late_end, "G4 the end"),
        (with_old_state, "states at rest"),
    ],
)
def test_an_end_that_is_missing_or_late_and_an_old_state_are_found(
    change: Callable[[Record], None], guarantee: str
) -> None:
    record = watched(1, 2, 3, 4)
    change(record)
    assert broken(run_of(record)) == [guarantee]


@pytest.mark.parametrize(
    ("members", "guarantee"),
    [
        ({"foreign": None}, "G7 no silence"),
        ({"anonymous": None}, "G7 no silence"),
        ({"rest": None}, "states at rest"),
        ({"rest": {"status": "running"}}, "states at rest"),
        ({"offsets": {1: 1, 2: 2, 3: 3}}, "G5 honest outage"),
    ],
)
def test_what_a_server_shows_or_hides_is_found(members: dict[str, Any], guarantee: str) -> None:
    assert broken(run_of(watched(1, 2, 3, 4), **members)) == [guarantee]


def test_an_outage_that_the_watchers_were_told_of_is_honest() -> None:
    record = watched(1, 2, 3, 4)
    record.degraded = 1
    assert broken(run_of(record, offsets={1: 1, 2: 2, 3: 3})) == []
    assert finding(run_of(watched(1, 2, 3, 4)), "G5 honest outage").is_right is None


def test_events_that_a_slow_watcher_was_told_of_are_no_silent_gap() -> None:
    record = Record("socket 1")
    record.sync(0, "new")
    record.event({"type": STEP, "offset": 1, "data": {"n": 1}}, 0.001)
    record.gap(3, "conflated")
    for number in (3, 4):
        record.event({"type": STEP, "offset": number, "data": {"n": number}}, 0.001)
    record.end_delay, record.state = 0.2, FINAL
    run = run_of(record)
    assert broken(run) == []
    assert (
        "1 events were left out and reported (conflated)" in finding(run, "G3 no silent gap").text
    )
