"""Which attempt a server ends, and how: it never ends one that another process runs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.fence import AttemptState, Refusal, check_fence
from semantik_realtime.core.leases import MAX_RECORD_BYTES, HeldJob, LeaseTimes
from semantik_realtime.core.lifecycle import STATUS_OF_TYPE, has_ended
from semantik_realtime.core.lost import attempt_to_end, end_of, known_end, waits_too_long

STATES = st.fixed_dictionaries(
    {
        "status": st.sampled_from([*STATUS_OF_TYPE.values(), "indexing", None, 3]),
        "attempt": st.integers(0, 4) | st.just("1"),
        "worker": st.sampled_from(["w", "other", None]),
    }
)


@given(STATES, st.integers(1, 5))
def test_neither_an_ended_job_nor_one_of_another_process_ends(
    state: dict[str, Any], expected: int
) -> None:
    attempt = attempt_to_end(state, "w", expected)
    if attempt is None:
        return
    assert not has_ended(state)
    assert state["worker"] == "w" or state["status"] in ("queued", "retrying")
    if state["status"] in ("queued", "retrying"):
        assert attempt < expected


@given(STATES, st.integers(1, 5))
def test_the_fence_refuses_an_end_after_a_newer_attempt_has_begun(
    state: dict[str, Any], expected: int
) -> None:
    attempt = attempt_to_end(state, "w", expected)
    if attempt is not None:
        assert check_fence(AttemptState(attempt + 1), attempt, True) is Refusal.STALE
        ended = check_fence(AttemptState(attempt), attempt, True)
        assert isinstance(ended, AttemptState)
        assert check_fence(ended, attempt, False) is Refusal.CLOSED


@given(
    STATES,
    st.none()
    | st.fixed_dictionaries(
        {
            "status": st.text()
            | st.sampled_from(["completed", "failed", "cancelled", "lost", "running"])
        }
    ),
)
def test_whatever_the_host_says_the_job_ends(
    state: dict[str, Any], outcome: dict[str, Any] | None
) -> None:
    end = end_of(state, HeldJob(), outcome, "2026-01-01T00:00:00.000Z", "why")
    assert has_ended(end.state)
    assert STATUS_OF_TYPE[end.type] == end.state["status"]
    assert isinstance(end.state["attempt"], int)


@given(st.floats(1, 86_400))
def test_a_job_is_lost_within_the_setting(lease_seconds: float) -> None:
    times = LeaseTimes.of(lease_seconds)
    # A host needs a moment to answer, however short the setting is.
    assert times.held + times.look + times.outcome <= max(lease_seconds, 7.0)
    assert times.renew * 3 <= times.held * 1.001


@given(st.text(max_size=3000), st.lists(st.text(min_size=200, max_size=230), max_size=20))
def test_a_record_is_never_too_big_and_keeps_the_owner(name: str, topics: list[str]) -> None:
    record = HeldJob(name[:1000], "7", topics, "2026-01-01T00:00:00.000Z").encode()
    assert len(record) <= MAX_RECORD_BYTES
    assert HeldJob.decode(record).owner == "7"


def test_a_job_that_was_being_cancelled_is_cancelled_unless_the_host_knows_better() -> None:
    state = {"status": "cancelling", "attempt": 1, "worker": "w"}
    assert attempt_to_end(state, "w", 1) == 1
    end = end_of(state, HeldJob(), None, "2026-01-01T00:00:00.000Z", "why")
    assert (end.type, end.state["status"]) == ("job_cancelled", "cancelled")
    end = end_of(state, HeldJob(), {"status": "completed"}, "2026-01-01T00:00:00.000Z", "why")
    assert end.type == "job_completed"


def test_only_times_that_can_be_compared_make_a_job_wait_too_long() -> None:
    queued = {"status": "queued", "queued_at": "yesterday"}
    assert not waits_too_long(queued, "", "2026-01-01T00:00:00.000Z")
    assert waits_too_long(queued, "2025-12-31T00:00:00Z", "2026-01-01T00:00:00.000Z")


def test_a_job_that_waits_since_the_newest_time_that_is_too_long_ago_waits_not_yet_too_long() -> (
    None
):
    since = "2026-01-01T00:00:00.000Z"
    retrying = {"status": "retrying", "queued_at": "2025-12-31T00:00:00.000Z"}
    assert not waits_too_long(retrying, since, since)
    assert waits_too_long(retrying, since, "2026-01-01T00:00:00.001Z")


def test_an_end_keeps_what_the_host_knows_and_nothing_of_an_earlier_attempt() -> None:
    state = {"status": "running", "attempt": 2, "name": "a", "eta": "9:00", "error": {"type": "E"}}
    outcome = {
        "status": "failed",
        "ended_at": "8:00",
        "error": {"type": "KeyError", "message": "x"},
    }
    failed = {"status": "failed", "attempt": 2, "name": "a", "ended_at": "8:00"}
    assert end_of(state, HeldJob("b"), outcome, "9:30", "why") == (
        "job_failed",
        failed | {"error": {"type": "KeyError", "message": "x"}},
    )
    outcome = {"status": "completed", "error": "no record"}
    completed = {"status": "completed", "attempt": 2, "name": "a", "ended_at": "9:30"}
    assert end_of(state, HeldJob(), outcome, "9:30", "why") == ("job_completed", completed)


@pytest.mark.parametrize(
    "outcome", [None, {"status": "lost", "error": {}}, {"status": "running"}, {}]
)
def test_a_job_without_a_state_whose_end_nobody_knows_is_lost(
    outcome: dict[str, Any] | None,
) -> None:
    record = HeldJob("index", queued_at="8:00")
    assert end_of(None, record, outcome, "9:30", "it died") == (
        "job_lost",
        {
            "status": "lost",
            "attempt": 0,
            "name": "index",
            "queued_at": "8:00",
            "ended_at": "9:30",
            "error": {"type": "Lost", "message": "it died"},
        },
    )
    assert end_of(None, HeldJob(), outcome, "9:30", "why").state.keys() == {
        *("status", "attempt", "ended_at", "error")
    }


@pytest.mark.parametrize("attempt", [True, "2", None, 2.0])
def test_an_attempt_that_is_no_number_counts_as_0(attempt: object) -> None:
    running = {"status": "running", "attempt": attempt, "worker": "w"}
    assert attempt_to_end(running, "w", 1) == 0
    end = known_end({"status": "cancelled", "attempt": attempt})
    assert end == ("job_cancelled", {"status": "cancelled", "attempt": 0})


def test_only_a_job_that_has_ended_has_a_known_end() -> None:
    assert known_end(None) is None
    assert known_end({"status": "cancelling", "attempt": 1}) is None
    lost = {"status": "lost", "attempt": 3, "error": {"type": "Lost"}}
    assert known_end(lost) == ("job_lost", lost)


def test_an_outcome_is_awaited_for_two_to_five_seconds_and_looks_are_not_too_frequent() -> None:
    short, middle, long = LeaseTimes.of(1), LeaseTimes.of(20), LeaseTimes.of(600)
    assert (short.outcome, middle.outcome, long.outcome) == (2.0, 3.0, 5.0)
    assert (short.look, middle.look, long.look) == (0.5, 2.0, 60.0)
    assert (middle.held, middle.renew) == (12.0, 4.0)


def test_a_record_that_is_too_big_loses_its_topics_and_the_end_of_its_name() -> None:
    fits = HeldJob("n" * 300, "7", ["t" * 200])
    assert HeldJob.decode(fits.encode()) == fits
    big = HeldJob("n" * 300, "7", ["t" * 200] * 30, queued_at="9:00", workflow="w")
    assert HeldJob.decode(big.encode()) == HeldJob("n" * 200, "7", (), "9:00", workflow="w")
    unnamed = HeldJob(None, "7", ["t" * 200] * 30)
    assert HeldJob.decode(unnamed.encode()) == HeldJob(None, "7")


@pytest.mark.parametrize(
    "record", [b"", b"{", b'{"expected": "one"}', b"\xff", b'{"name": "\xff"}']
)
def test_a_record_of_another_version_is_read_as_an_empty_one(record: bytes) -> None:
    assert HeldJob.decode(record) == HeldJob()
