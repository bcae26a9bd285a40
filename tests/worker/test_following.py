"""How many workflows a process follows, and what it publishes of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from topic_log import Log

from semantik_realtime.clock import now_text
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.lifecycle import END_STATUSES, END_TYPES, STATUS_OF_TYPE
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import workflow
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.members import Member
from semantik_realtime.worker.workflow import WorkflowFollower


def test_a_workflow_without_a_task_here_makes_room_and_a_full_process_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workflow, "MAX_FOLLOWED", 2)
    follower = WorkflowFollower(lambda: None)

    def receive(*names: str) -> list[str]:
        for name in names:
            meta = JobMeta(f"task of {name}", owner="7", member=Member(name, {"n": 0}))
            follower._news.append((meta, 1))
        follower._take_news()
        return sorted(follower._followed)

    assert receive("a", "b") == ["a", "b"]
    follower._news.append(("a", -1))
    follower._take_news()
    # It has been read since.
    follower._followed["a"].has_news = False
    assert receive("c") == ["b", "c"]
    assert receive("d", "e") == ["b", "c"]
    assert caplog.text.count("workflow: not followed job=d") == 1
    assert "job=e" not in caplog.text


def member(runtime: Runtime, flow: str, status: str, attempt: int) -> None:
    type = {status: type for type, status in STATUS_OF_TYPE.items()}[status]
    ended = {"ended_at": now_text()} if status in END_STATUSES else {}
    state = {
        **{"status": status, "attempt": attempt, "started_at": now_text()},
        **{"member": {"n": 0}, **ended},
    }
    emit(runtime, flow, "a", type, state)


def emit(runtime: Runtime, flow: str, key: str, type: str, state: dict[str, Any]) -> None:
    drafts = make_drafts(
        {f"job:{flow}": "7"},
        *(type, now_text(), key),
        state=state,
        job=key,
        attempt=state["attempt"],
        terminal=type in END_TYPES,
    )
    for draft in drafts:
        runtime.emitter.emit(draft)


@pytest.mark.parametrize(
    ("ended_as", "goes_on_as"), [("cancelled", "job_cancelling"), ("lost", "job_started")]
)
def test_a_workflow_that_was_ended_when_its_first_task_began_goes_on_until_that_has_ended(
    runtime: Runtime, log: Callable[[str], Log], ended_as: str, goes_on_as: str
) -> None:
    flow = f"flow-{uuid.uuid4()}"
    own = {"status": "queued", "attempt": 0, "workflow": {"total": 1, "ends": "all"}}
    emit(runtime, flow, flow, "job_queued", own)
    # A server ends it in the moment in which a worker begins its task.
    emit(runtime, flow, flow, f"job_{ended_as}", {**own, "status": ended_as})
    member(runtime, flow, "running", 1)
    each = workflow._Followed(flow, "7", [])

    def look() -> list[str]:
        workflow.publish(runtime, each, states_of(log(f"job:{flow}")))
        return [event["type"] for event in log(f"job:{flow}").events if event["key"] == flow]

    assert look() == ["job_queued", f"job_{ended_as}", goes_on_as]
    assert look() == ["job_queued", f"job_{ended_as}", goes_on_as]
    assert not each.has_ended
    member(runtime, flow, "completed", 1)
    assert look()[-1] == "job_completed"
    assert states_of(log(f"job:{flow}"))[flow]["status"] == "completed"


def test_progress_does_not_hide_that_a_workflow_is_being_cancelled(
    runtime: Runtime, log: Callable[[str], Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = f"flow-{uuid.uuid4()}"
    own = {"status": "queued", "attempt": 0, "workflow": {"total": 2, "ends": "all"}}
    emit(runtime, flow, flow, "job_queued", own)
    member(runtime, flow, "running", 1)
    states = states_of(log(f"job:{flow}"))
    # The request comes after the states were read.
    emit(runtime, flow, flow, "job_cancelling", {**own, "status": "cancelling"})
    monkeypatch.setattr(workflow, "is_revoked", lambda job: job == flow)
    workflow.publish(runtime, workflow._Followed(flow, "7", []), states)
    assert states_of(log(f"job:{flow}"))[flow]["status"] == "cancelling"


def states_of(log: Log) -> dict[str, Any]:
    return {key: json.loads(event)["state"] for key, event in log.snapshot().states.items()}
