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
        state.set_progress(1, 2, "files")
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
    state.set_progress(1, 2, None)
    before = dict(state.members)
    with pytest.raises(BAD_VALUE):
        state.set_progress(*progress)
    assert (state.members, state.version) == (before, 1)


def test_fields_that_are_too_big_together_change_nothing() -> None:
    state = JobState(1)
    state.set_fields({"a": b"1"}, 10)
    before = dict(state.members)
    with pytest.raises(ValueError, match="11 bytes, the limit is 10"):
        state.set_fields({"b": b"12345678"}, 10)
    assert (state.members, state.version) == (before, 1)


def test_a_retry_ends_the_attempt_but_not_the_job() -> None:
    state = JobState(1)
    state.start("t1")
    state.end("job_retrying", "t2", None, None)
    assert state.members == {"status": "retrying", "attempt": 1, "started_at": "t1"}
    state.end("job_failed", "t3", {"type": "E", "message": "m"}, "stopped")
    assert state.members["status"] == "failed"
    assert state.members["ended_at"] == "t3"
    assert state.members["message"] == "stopped"


def test_a_shrunk_state_keeps_how_the_attempt_stands_and_the_type_of_the_error() -> None:
    state = JobState(1, "n" * 500, "t0")
    state.start("t1")
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
        "error": {"type": "E", "message": ""},
    }
