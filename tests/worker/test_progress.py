"""`track`: the progress of a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from topic_log import Log

from semantik_realtime import job, track
from semantik_realtime.worker.job import Job

Look = Callable[[str], Log]


def test_without_a_job_it_is_the_plain_iteration() -> None:
    assert list(track([1, 2, 3], "x", unit="y")) == [1, 2, 3]


def test_an_item_counts_when_the_loop_requests_the_next_one(running: Job, log: Look) -> None:
    items = track(["a", "b"], "Reading", unit="files")
    shown = [log("job:1").state["progress"]["current"] for _ in items]
    assert shown == [0, 1]
    state = log("job:1").state
    assert state["progress"] == {"current": 2, "total": 2, "unit": "files"}
    assert state["message"] == "Reading"


def test_a_generator_has_no_total_unless_it_is_given(running: Job, log: Look) -> None:
    assert list(track(iter("abc"))) == ["a", "b", "c"]
    assert log("job:1").state["progress"] == {"current": 3, "total": None}
    assert list(track(iter("abc"), total=5)) == ["a", "b", "c"]
    assert log("job:1").state["progress"] == {"current": 3, "total": 5}


def test_an_empty_loop_is_shown_as_done(running: Job, log: Look) -> None:
    assert list(track([])) == []
    assert log("job:1").state["progress"] == {"current": 0, "total": 0}


def test_the_outermost_loop_sets_the_progress(running: Job, log: Look) -> None:
    inner = []
    for letter in track("ab", "Outer"):
        for _ in track(range(5), f"Inner {letter}"):
            pass
        inner.append(log("job:1").state)
    assert [state["progress"] for state in inner] == [
        {"current": 0, "total": 2},
        {"current": 1, "total": 2},
    ]
    messages = [event["state"].get("message") for event in log("job:1").events]
    assert messages[-1] == "Outer"


def test_an_inner_loop_sets_the_message_while_it_runs(running: Job, log: Look) -> None:
    for _ in track("a", "Outer"):
        for _ in track("b", "Inner"):
            assert log("job:1").state["message"] == "Inner"
        assert log("job:1").state["message"] == "Outer"


def test_a_message_of_the_loops_body_stays(running: Job, log: Look) -> None:
    for name in track(["a.txt", "b.txt"], "Reading"):
        job.message(name)
    assert log("job:1").state["message"] == "b.txt"


def test_after_a_break_the_next_loop_sets_the_progress(running: Job, log: Look) -> None:
    for item in track(range(10)):
        if item == 3:
            break
    assert log("job:1").state["progress"]["current"] == 3
    list(track(range(4)))
    assert log("job:1").state["progress"] == {"current": 4, "total": 4}


def test_an_exception_of_the_body_passes_through(running: Job) -> None:
    def loop() -> None:
        for _ in track([1]):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert running.bars == []
