"""Which attempt a server ends, and how: it never ends one that another process runs."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.fence import AttemptState, Refusal, check_fence
from semantik_realtime.core.leases import MAX_RECORD_BYTES, HeldJob, LeaseTimes
from semantik_realtime.core.lifecycle import STATUS_OF_TYPE, has_ended
from semantik_realtime.core.lost import attempt_to_end, end_of, waits_too_long

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
