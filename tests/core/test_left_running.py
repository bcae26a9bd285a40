"""What the drafts of an ended process say about the attempts that it has left running."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.leases import HeldJob
from semantik_realtime.core.left_running import LeftRunning
from semantik_realtime.core.lifecycle import ATTEMPT_ENDS, END_TYPES, STATUS_OF_TYPE

TIME = "2026-01-31T09:00:00.000Z"


def drafts_of(job, type, attempt, *, topics=None, **state):
    return make_drafts(
        topics or {f"job:{job}": "7", "user:7": "7", "project:p": None},
        *(type, TIME, job),
        state={"status": STATUS_OF_TYPE.get(type, "running"), "attempt": attempt, **state},
        job=job,
        attempt=attempt,
        terminal=type in END_TYPES,
    )


def left_by(*events, split=False):
    left = LeftRunning()
    for event in events:
        for part in [[one] for one in event] if split else [event]:
            left.add(part)
    return {
        worker: {job: HeldJob.decode(record) for job, record in records.items()}
        for worker, records in left.records().items()
    }


@pytest.mark.parametrize("split", [False, True])
def test_an_attempt_that_begins_and_does_not_end_is_left_with_all_that_ends_it(split):
    begin = drafts_of("1", "job_started", 2, worker="w", name="app.index", queued_at=TIME)
    assert left_by(begin, drafts_of("1", "step", 2), split=split) == {
        "w": {"1": HeldJob("app.index", "7", topics=["project:p"], queued_at=TIME, expected=2)}
    }


def test_a_member_is_left_with_its_workflow():
    begin = drafts_of("a", "job_started", 1, topics={"job:flow~3A1": "7"}, worker="w")
    assert left_by(begin) == {"w": {"a": HeldJob(owner="7", workflow="flow:1")}}


@pytest.mark.parametrize("type", sorted(ATTEMPT_ENDS))
def test_one_that_ends_is_not_left_unless_the_next_one_begins(type):
    begin, end = drafts_of("1", "job_started", 1, worker="w"), drafts_of("1", type, 1)
    assert left_by(begin, end) == {}
    again = drafts_of("1", "job_started", 2, worker="w")
    assert left_by(begin, end, again)["w"]["1"].expected == 2
    # The end of the one before, sent late.
    assert left_by(begin, again, end)["w"]["1"].expected == 2


def test_what_the_backend_knew_before_is_not_held_again():
    assert left_by(drafts_of("1", "step", 1, worker="w")) == {}


def test_a_state_without_a_process_is_not_held():
    assert left_by(drafts_of("1", "job_started", 1)) == {}
    assert left_by(drafts_of("1", "job_started", 1, worker=3)) == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(sorted(STATUS_OF_TYPE)))))
def test_a_job_is_left_if_its_last_event_of_these_begins(history):
    left = LeftRunning()
    for job, type in history:
        left.add(drafts_of(job, type, 1, worker="w"))
    expected = {}
    for job, type in history:
        if type == "job_started" or type in ATTEMPT_ENDS:
            expected[job] = type == "job_started"
    jobs = {job for records in left.records().values() for job in records}
    assert jobs == {job for job, is_left in expected.items() if is_left}
