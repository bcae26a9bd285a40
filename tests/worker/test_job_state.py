"""The state of an attempt, and the checks of its values, without a job or a process."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from semantik_realtime.worker import values
from semantik_realtime.worker.job_state import JobState
from semantik_realtime.worker.values import BAD_VALUE


def test_the_examples_of_the_value_checks_are_true() -> None:
    failed, attempted = doctest.testmod(values)
    assert (failed, attempted > 0) == (0, True)


def test_what_another_process_sent_replaces_the_members() -> None:
    state = JobState(2, "index", "2026-01-01T00:00:00.000Z", {"status": "running", "name": "other"})
    assert state.members == {
        "status": "running",
        "attempt": 2,
        "name": "other",
        "queued_at": "2026-01-01T00:00:00.000Z",
    }


def test_the_version_grows_only_if_a_member_changes() -> None:
    state = JobState(1)
    for _ in range(2):
        state.set_progress(1, 2, "files", 0.0)
        state.set_message("reading")
        state.set_fields({"a": b"1"}, 100)
    assert state.version == 3
    assert not state.set_fields({"a": b"1"}, 100)
    assert state.set_fields({"b": b"2"}, 100)
    assert state.version == 4


@pytest.mark.parametrize(
    "progress", [("3", 10, None), (1, "10", None), (1, None, 5), (float("nan"), None, None)]
)
def test_a_bad_progress_changes_nothing(progress: tuple[Any, Any, Any]) -> None:
    state = JobState(1)
    state.set_progress(1, 2, None, 0.0)
    before = dict(state.members)
    with pytest.raises(BAD_VALUE):
        state.set_progress(*progress, 1.0)
    assert (state.members, state.version) == (before, 1)


def test_the_progress_has_its_rate_while_the_job_runs() -> None:
    state = JobState(1)
    for second in range(4):
        state.set_progress(12 * second, 100, "files", float(second))
    assert state.members["progress"] == {"current": 36, "total": 100, "unit": "files", "rate": 12.0}
    state.set_progress(36, 100, "files", 9.0)
    assert state.version == 4, "the same progress is no change, although its rate has fallen"
    state.set_progress(37, 100, "pages", 10.0)
    assert "rate" not in state.members["progress"], "files a second are not pages a second"
    state.set_progress(49, 100, "pages", 12.0)
    state.set_inner([{"current": 1, "total": None}])
    assert state.members["progress"]["rate"] == 6.0
    state.end("job_completed", "t", None, None)
    assert state.members["progress"] == {"current": 49, "total": 100, "unit": "pages"}


def test_the_end_leaves_a_progress_of_another_shape_as_it_is() -> None:
    state = JobState(1, known={"progress": "half"})
    state.end("job_failed", "t", None, None)
    assert state.members["progress"] == "half"


def test_fields_that_are_too_big_together_change_nothing() -> None:
    state = JobState(1)
    state.set_fields({"a": b"1"}, 10)
    before = dict(state.members)
    with pytest.raises(ValueError, match="11 bytes, the limit is 10"):
        state.set_fields({"b": b"12345678"}, 10)
    assert (state.members, state.version) == (before, 1)


def test_a_retry_ends_the_attempt_but_not_the_job() -> None:
    state = JobState(1)
    state.start("t1", "w1")
    state.end("job_retrying", "t2", None, None, 0.5)
    assert state.members == {
        "status": "retrying",
        "attempt": 1,
        "started_at": "t1",
        "worker": "w1",
        "eta": "1970-01-01T00:00:00.500Z",
    }
    state.end("job_failed", "t3", {"type": "E", "message": "m"}, "stopped")
    assert state.members["status"] == "failed"
    assert state.members["ended_at"] == "t3"
    assert state.members["message"] == "stopped"
    assert "eta" not in state.members


def test_a_shrunk_state_keeps_how_the_attempt_stands_and_the_type_of_the_error() -> None:
    state = JobState(1, "n" * 500, "t0")
    state.start("t1", "w1")
    state.set_message("long")
    state.set_fields({"a": b"1"}, 100)
    state.end("job_failed", "t2", {"type": "E", "message": "long"}, None)
    state.shrink()
    assert state.members == {
        "status": "failed",
        "attempt": 1,
        "queued_at": "t0",
        "started_at": "t1",
        "ended_at": "t2",
        "worker": "w1",
        "error": {"type": "E", "message": ""},
    }
