"""The replacement for a self-made helper that sends updates from a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from topic_log import Log

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.migrate.tasks import TaskUpdates
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.current import pop_job, push_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.values import misuse

Look = Callable[[str], Log]


def types(log: Log) -> list[str]:
    """Return the types of a log's events, without those of the progress between them."""
    return [event["type"] for event in log.events if event["type"] != "job_progress"]


def test_updates_of_a_task_become_events_and_the_whole_state(runtime: Runtime, log: Look) -> None:
    with TaskUpdates("op-1", runtime=runtime) as updates:
        updates.set_user_id(7)
        updates.send_update("job_started", {"total_files": 2})
        updates.send_update("file_completed", {"file": "a.pdf", "current": 1, "total": 2})
        updates.send_update("job_completed", {"progress": 100, "message": "done"})
    assert types(log("job:op-1")) == ["job_started", "file_completed", "job_completed"]
    state = log("job:op-1").last["state"]
    assert state["status"] == "completed"
    assert "attempt" not in state, "an event without a number belongs to the newest attempt"
    assert state["progress"] == {"current": 100, "total": 100, "unit": "%"}
    assert (state["message"], state["fields"]) == ("done", {"total_files": 2, "file": "a.pdf"})
    assert log("job:op-1").snapshot().owner == "7"
    assert log("user:7").last["state"] == state
    [step] = [event for event in log("job:op-1").events if event["type"] == "file_completed"]
    assert step["data"] == {"file": "a.pdf", "current": 1, "total": 2}


def test_a_coroutine_awaits_the_same_calls(runtime: Runtime, log: Look) -> None:
    async def task() -> None:
        async with TaskUpdates("op-1", owner="7", runtime=runtime) as updates:
            await updates.send_update("progress", {"progress": 50, "status": "running"})
            await updates.send_update("job_failed", {"error": "no space left"})

    asyncio.run(task())
    assert types(log("job:op-1")) == ["job_started", "progress", "job_failed"]
    assert log("job:op-1").last["state"]["error"] == {"type": "Error", "message": "no space left"}


def test_the_words_of_the_application_end_the_job() -> None:
    words = {"operation_completed": "job_completed", "processing": "running", "error": "failed"}
    settings = Settings(backend="memory", host_words=words)
    for type, data, status in (
        ("operation_completed", {"status": "completed"}, "completed"),
        ("operation_update", {"status": "error", "error": "x"}, "failed"),
        ("operation_update", {"status": "processing"}, "running"),
    ):
        runtime = Runtime(settings, backend=MemoryBackend(settings))
        with TaskUpdates("op-1", runtime=runtime) as updates:
            updates.send_update(type, data)
            job = updates.current()
        assert job._state.members["status"] == status
        assert job.has_ended == (status != "running")
        assert not misuse
        runtime.close()


def test_each_execution_may_be_an_attempt_of_its_own(runtime: Runtime, log: Look) -> None:
    with TaskUpdates("op-1", new_attempt=True, runtime=runtime) as first:
        first.send_update("job_failed", {"error": "x"})
    with TaskUpdates("op-1", new_attempt=True, runtime=runtime) as second:
        second.send_update("job_completed")
    with TaskUpdates("op-1", runtime=runtime) as late:
        late.send_update("file_completed", {"file": "late.pdf"})
    assert types(log("job:op-1")) == ["job_started", "job_failed", "job_started", "job_completed"]
    assert [event["state"]["attempt"] for event in log("job:op-1").events] == [1, 1, 2, 2]


def test_updates_of_the_tasks_own_job_are_the_tasks(runtime: Runtime, log: Look) -> None:
    running = Job(runtime, JobMeta("task-1", "index", "7"), 1)
    running.begin()
    push_job(running)
    try:
        with TaskUpdates("task-1", runtime=runtime) as updates:
            updates.send_update("file_completed", {"file": "a.pdf", "current": 1, "total": 2})
            updates.send_update("job_completed", {"failed": 0})
        running.end("job_completed")
    finally:
        pop_job(running)
    assert types(log("job:task-1"))[:2] == ["job_started", "file_completed"]
    assert types(log("job:task-1")).count("job_completed") == 1
    assert log("job:task-1").last["state"]["fields"] == {"file": "a.pdf", "failed": 0}


@pytest.mark.parametrize(
    ("type", "data"),
    [
        ("Not A Type", {}),
        (7, {}),
        (["x"], {}),
        ("note", ["x"]),
        ("note", {7: "x"}),
        ("note", {"value": object()}),
        ("note", {"status": ["x"], "progress": "half", "message": 5, "error": object()}),
        ("job_deleted", {}),
    ],
)
def test_no_update_raises_into_the_task(runtime: Runtime, type: Any, data: Any) -> None:
    with TaskUpdates("op-1", runtime=runtime) as updates:
        updates.send_update(type, data)
        updates.send_update("note", {"after": 1})
