"""What the run of kills calls right, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
from job_oracle import NEVER_BEGUN, NOT_BEGUN_AGAIN, Note, Story, faults_of, left_by_broker
from job_oracle import surplus_runs as surplus

from semantik_realtime.core.lifecycle import STATUS_OF_TYPE

QUEUED = ("job_queued", 0)
KILLED = {66}


def event(type: str, attempt: int, error: str = "", reason: str = "") -> dict[str, Any]:
    state: dict[str, Any] = {"status": STATUS_OF_TYPE.get(type, "running"), "attempt": attempt}
    if error:
        state["error"] = {"type": error}
    return {"type": type, "state": state, "data": {"reason": reason}}


def story(
    task: str, *events: tuple[Any, ...], notes: str = "", is_in_broker: bool = False
) -> Story:
    """Return a story; ``notes`` are words like ``begin:66``."""
    words = [word.split(":") for word in notes.split()]
    return Story(
        task,
        [event(*one) for one in events],
        [Note(what, int(pid), float(at)) for at, (what, pid) in enumerate(words)],
        is_in_broker,
    )


STARTED, STARTED_AGAIN = ("job_started", 1), ("job_started", 2)
COMPLETED = ("job_completed", 1)
BY_LEASE = ("job_lost", 1, "Lost", "lease")
RIGHT = [
    story("early", QUEUED, STARTED, COMPLETED, notes="begin:1 end:1"),
    story("early", QUEUED, STARTED, BY_LEASE, notes="begin:66"),
    story("early", QUEUED, STARTED, ("job_failed", 1, "WorkerLostError"), notes="begin:66"),
    # Killed before it could write that it had begun.
    story("early", QUEUED, ("job_failed", 1, "WorkerLostError")),
    story("early", QUEUED, ("job_lost", 0, "Lost", "queued")),
    story(
        "late",
        *(QUEUED, STARTED, BY_LEASE, STARTED_AGAIN, ("job_completed", 2)),
        notes="begin:66 begin:1 end:1",
    ),
    story("failing", QUEUED, STARTED, ("job_failed", 1, "ValueError"), notes="begin:1 end:1"),
    story("suicidal", QUEUED, STARTED, ("job_failed", 1, "WorkerLostError"), notes="begin:1 end:1"),
]
WRONG = {
    "no end": story("early", QUEUED, STARTED, notes="begin:66"),
    "started twice": story("early", QUEUED, STARTED, STARTED, COMPLETED, notes="begin:1 end:1"),
    "after the end": story("early", STARTED, COMPLETED, COMPLETED, notes="begin:1 end:1"),
    "an older attempt": story(
        "late", STARTED_AGAIN, STARTED, ("job_completed", 2), notes="begin:1 end:1"
    ),
    "without its work": story("late", QUEUED, STARTED, COMPLETED, notes="begin:66"),
    "late is failed": story(
        "late", QUEUED, STARTED, ("job_failed", 1, "WorkerLostError"), notes="begin:66"
    ),
    "although nothing of it was killed": story("early", STARTED, BY_LEASE, notes="begin:1 end:1"),
    "by KeyError": story("early", STARTED, ("job_failed", 1, "KeyError"), notes="begin:66"),
    "although its message waits": story(
        "early", QUEUED, ("job_lost", 0, "Lost", "queued"), is_in_broker=True
    ),
    "as queued although it had begun": story(
        "early", QUEUED, STARTED, ("job_lost", 1, "Lost", "queued"), notes="begin:66"
    ),
    "stopped in the middle": story("late", STARTED, COMPLETED, notes="begin:2 begin:1 end:1"),
}


@pytest.mark.parametrize("right", RIGHT)
def test_what_is_right(right: Story) -> None:
    assert list(faults_of(right, KILLED, loses_messages=True)) == []


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong(fault: str) -> None:
    found = list(faults_of(WRONG[fault], KILLED, loses_messages=True))
    assert any(fault in one for one in found), found


def test_only_a_message_that_can_be_lost_is_left_by_the_broker() -> None:
    never = ("job_lost", 0, "Lost", "queued")
    late = story("late", QUEUED, never)
    assert left_by_broker(late, KILLED, loses_messages=True) == NEVER_BEGUN
    assert left_by_broker(late, KILLED, loses_messages=False) is None
    assert list(faults_of(late, KILLED, loses_messages=False))
    # With an early acknowledgement any broker loses it.
    early = story("early", QUEUED, never)
    assert left_by_broker(early, KILLED, loses_messages=False) == NEVER_BEGUN


def test_a_late_task_that_is_not_delivered_again_must_have_been_killed() -> None:
    killed = story("late", QUEUED, STARTED, BY_LEASE, notes="begin:66")
    assert left_by_broker(killed, KILLED, loses_messages=True) == NOT_BEGUN_AGAIN
    assert list(faults_of(killed, KILLED, loses_messages=True)) == []
    lives = story("late", QUEUED, STARTED, BY_LEASE, notes="begin:1 end:1")
    assert left_by_broker(lives, KILLED, loses_messages=True) is None
    assert list(faults_of(lives, KILLED, loses_messages=True))


def test_a_retry_that_is_not_begun_is_left_by_the_broker() -> None:
    events = [STARTED, ("job_retrying", 1), ("job_lost", 1, "Lost", "queued")]
    left = story("retrying", *events, notes="begin:1 end:1")
    assert left_by_broker(left, KILLED, loses_messages=True) == NOT_BEGUN_AGAIN
    assert list(faults_of(left, KILLED, loses_messages=True)) == []


def test_what_the_broker_delivers_twice_is_counted() -> None:
    assert surplus(story("late", notes="begin:1 end:1 begin:2 end:2"), KILLED) == 1
    assert surplus(story("late", notes="begin:66 begin:2 end:2"), KILLED) == 0
    assert surplus(story("retrying", notes=3 * "begin:1 end:1 "), KILLED) == 0
