"""What ``semantik-realtime watch`` prints of events and states."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from semantik_realtime.cli.watch import event_line, gap_text, job_progress, show_update
from semantik_realtime.client import Update
from semantik_realtime.core.fold import Gap, View


def event(**members: Any) -> dict[str, Any]:
    return {"offset": 3, "time": "2025-07-01T10:00:00.123Z", "type": "job_started", **members}


@pytest.mark.parametrize(
    ("members", "end"),
    [
        ({"key": "1", "state": {"status": "running"}}, "job_started"),
        ({"data": {"file": "a.txt"}}, "job_started  file=a.txt"),
        ({"key": "a", "state": {"member": {"at": "step 1/2"}}}, "job_started  [step 1/2]"),
        ({"key": "a", "data": {"file": "a.txt"}}, "job_started  [a] file=a.txt"),
        ({"key": "a", "state": {"member": 3}, "data": 4}, "job_started  [a]"),
    ],
)
def test_the_line_of_an_event_says_which_member_of_a_workflow_it_is_about(
    members: dict[str, Any], end: str
) -> None:
    assert event_line(event(**members), "1").rstrip() == f"    3  10:00:00.123  {end}"


@pytest.mark.parametrize(
    ("status", "shown"), [("running", "Reading"), ("completed", "completed"), ("lost", "lost")]
)
def test_the_bar_of_a_job_that_has_ended_has_its_status(status: str, shown: str) -> None:
    progress = job_progress(Console(file=io.StringIO()))
    bar = progress.add_task("waiting", total=None, link="")
    view = View("job:1")
    view.folded["1"] = {"status": status, "message": "Reading"}
    show_update(progress, bar, Update("live", view), "1")
    assert progress.tasks[0].description == shown


@pytest.mark.parametrize(
    ("gap", "text"),
    [
        (Gap("conflated", 12), "12 events left out: this connection reads too slowly"),
        (Gap("trimmed", 9), "9 events replaced by the states: trimmed"),
        (Gap("diverged", None), "events replaced by the states: diverged"),
    ],
)
def test_what_is_left_out_is_said(gap: Gap, text: str) -> None:
    assert gap_text(gap) == text
