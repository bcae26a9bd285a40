"""Attempts of one job whose processes died in outages: each has a number of its own, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from topic_log import Log, wait_until

from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Claim
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.emitter.spool_file import SpoolFile
from semantik_realtime.runtime import Runtime

EARLY, LATE = "2026-01-31T09:00:00.000Z", "2026-01-31T09:00:10.000Z"


def leave(directory: Path, process: str, begun_at: str, *types: str) -> None:
    """Store the drafts of the first attempt that a process knew of, and let the process die."""
    claim = Claim("job:1", "1", f"{process}-0", expected=1, owner="7")
    drafts = []
    for number, type in enumerate(types, 1):
        ends = type == "job_completed"
        state = {"status": "completed" if ends else "running", "attempt": 1, "worker": process}
        state["started_at"] = begun_at
        [draft] = make_drafts(
            {"job:1": "7"},
            *(type, begun_at, "1"),
            state=state,
            job="1",
            attempt=1,
            claim=claim,
            terminal=ends,
        )
        draft.producer, draft.number = process, number
        drafts.append(draft)
    file = SpoolFile(directory, 2**20)
    file.store(drafts, lambda: drafts)
    file.release()


def recovered(runtime: Runtime, directory: Path, log: Callable[[str], Log]) -> list[Any]:
    """Let another process send what was left; return who sent which attempt's events."""
    emitter = Emitter(runtime.backend, directory=directory)
    try:
        emitter.recover()
        wait_until(lambda: not list(directory.iterdir()))
    finally:
        emitter.close(5)
    states = [(event["type"], event["state"]) for event in log("job:1").events]
    return [(type, state["worker"], state["attempt"]) for type, state in states]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_a_later_attempt_whose_number_is_taken_gets_the_next_one(
    runtime: Runtime, directory: Path, log: Callable[[str], Log]
) -> None:
    leave(directory, "first", EARLY, "job_started", "step")
    leave(directory, "second", LATE, "job_started", "step", "job_completed")
    assert recovered(runtime, directory, log) == [
        *(("job_started", "first", 1), ("step", "first", 1)),
        *(("job_started", "second", 2), ("step", "second", 2), ("job_completed", "second", 2)),
    ]


def test_an_earlier_attempt_that_is_recovered_last_changes_nothing(
    runtime: Runtime,
    directory: Path,
    log: Callable[[str], Log],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In one process there is no second connection to read by.
    start: Callable[[str, str], Any] = lambda topic, _: log(topic).state["started_at"]  # noqa: E731
    monkeypatch.setattr(runtime.backend, "read_start", start)
    leave(directory, "second", LATE, "job_started", "step")
    leave(directory, "first", EARLY, "job_started", "step")
    assert recovered(runtime, directory, log) == [
        ("job_started", "second", 1),
        ("step", "second", 1),
    ]


def test_drafts_that_had_reached_the_backend_are_no_other_attempt(
    runtime: Runtime, directory: Path, log: Callable[[str], Log]
) -> None:
    leave(directory, "first", EARLY, "job_started", "step")
    recovered(runtime, directory, log)
    # Its file had more than the backend had acknowledged.
    leave(directory, "first", EARLY, "job_started", "step", "job_completed")
    assert recovered(runtime, directory, log) == [
        *(("job_started", "first", 1), ("step", "first", 1), ("job_completed", "first", 1)),
    ]
