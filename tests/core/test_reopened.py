"""A workflow that was ended while it waited goes on if one of its tasks had begun."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.cancelling import cancel_step
from semantik_realtime.core.lifecycle import STATUS_OF_TYPE, has_ended
from semantik_realtime.core.workflow import end_of, progress_of, reopened

WAITS = {"status": "queued", "attempt": 0, "queued_at": "2026-01-31T09:00:00.000Z"}
ENDED = {"ended_at": "2026-01-31T09:00:01.000Z"}


def workflow(own, ends, *statuses):
    members = {
        f"m{number}": {
            "status": status,
            "attempt": 1,
            "started_at": "2026-01-31T09:00:00.500Z",
            "member": {"n": number},
        }
        for number, status in enumerate(statuses)
    }
    total = len(statuses)
    return {"w": {**WAITS, **own, "workflow": {"total": total, "ends": ends}}, **members}


@pytest.mark.parametrize(
    ("ended_as", "goes_on_as"), [("cancelled", "cancelling"), ("lost", "running")]
)
def test_it_goes_on_as_the_next_attempt_without_its_end(ended_as, goes_on_as):
    own = {"status": ended_as, "error": {"type": "Lost", "message": ""}, **ENDED}
    state = reopened(workflow(own, "all", "running", "cancelled"), "w")
    assert (state["status"], state["attempt"]) == (goes_on_as, 1)
    assert not state.keys() & {"ended_at", "error"}


@pytest.mark.parametrize("status", ["completed", "failed", "lost"])
def test_it_ends_as_its_tasks_did_if_they_were_too_fast(status):
    states = workflow({"status": "cancelled", **ENDED}, "all", status)
    states["w"] = reopened(states, "w")
    ending = end_of(states, "w")
    assert STATUS_OF_TYPE[ending.type] == ("completed" if status == "completed" else "failed")


@pytest.mark.parametrize(
    "states",
    [
        workflow({"status": "cancelled"}, "all", "queued", "cancelled"),
        workflow({"status": "cancelled"}, "all", "completed", "cancelled"),
        workflow({"status": "cancelled"}, "last", "cancelled", "running"),
        workflow({"status": "cancelled"}, "open", "running"),
        workflow({"status": "cancelled", "attempt": 1}, "all", "running"),
        workflow({"status": "failed"}, "all", "running"),
        workflow({}, "all", "running"),
        {"w": {"status": "cancelled", "attempt": 0}, "m": {"status": "running"}},
    ],
)
def test_what_has_ended_rightly_stays_so(states):
    assert reopened(states, "w") is None


statuses = st.lists(st.sampled_from(sorted(STATUS_OF_TYPE.values())), min_size=1, max_size=4)


@given(statuses, st.sampled_from(["all", "last"]), st.sampled_from(["cancelled", "lost"]))
def test_it_goes_on_once_and_shows_its_progress(members, ends, ended_as):
    states = workflow({"status": ended_as, **ENDED}, ends, *members)
    again = reopened(states, "w")
    if again is None:
        return
    states["w"] = again
    assert not has_ended(again)
    assert reopened(states, "w") is None
    progress = progress_of(states, "w", "2026-01-31T09:00:02.000Z")
    assert progress is not None
    assert progress["attempt"] == 1
    assert progress["status"] == again["status"]
    # A request to cancel it, now, does not end it.
    assert cancel_step(progress, "t").type in ("job_cancelling", None)
