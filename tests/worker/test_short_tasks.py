"""Tasks that report nothing: their events are made in the emitter's thread, many at once."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from topic_log import Log, wait_until

from semantik_realtime import job
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.core.event import Draft
from semantik_realtime.emitter.queue import Queue
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import job_events
from semantik_realtime.worker.current import pop_job, push_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.tracker import TaskTracker

Look = Callable[[str], Log]
SPENT = ["job_started", "job_completed"]

app = Celery("short_tasks", broker="memory://", backend="cache+memory://", set_as_current=False)


@app.task
def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The type of each event that was made, and whether this thread made it."""
    made: list[tuple[str, bool]] = []
    own, original = threading.get_ident(), job_events.make_checked_drafts

    def make(topics: Any, type: str, *args: Any, **kwargs: Any) -> list[Draft]:
        made.append((type, threading.get_ident() == own))
        return original(topics, type, *args, **kwargs)

    monkeypatch.setattr(job_events, "make_checked_drafts", make)
    return made


def test_the_thread_of_a_task_that_reports_nothing_makes_no_event(
    tracker: TaskTracker, log: Look, makers: list[tuple[str, bool]]
) -> None:
    add.apply((1, 2), task_id="1")
    assert log("job:1").types == SPENT
    assert makers == [("job_started", False), ("job_completed", False)]


def test_the_times_of_start_and_end_are_not_those_of_the_making(runtime: Runtime) -> None:
    running = Job(runtime, JobMeta("1", "index"), 1)
    with running._lock:
        # The emitter's thread waits for it.
        running.begin()
        began = running._begun
        wait_until(lambda: begun_after(began))
        running.end("job_completed")
        drafts = running.make_drafts()
    start, end = (json.loads(draft.body) for draft in drafts)
    assert start["time"] == start["state"]["started_at"] < end["time"] == end["state"]["ended_at"]
    assert end["state"]["started_at"] == start["time"]


def begun_after(began: tuple[int, str] | None) -> bool:
    assert began is not None
    return job_events.milliseconds_text(began[0]) < job_events.now_text()


def test_what_a_task_reports_is_between_its_start_and_its_end(runtime: Runtime, log: Look) -> None:
    for number in range(20):
        running = Job(runtime, JobMeta(str(number)), 1)
        running.begin()
        running.emit("note")
        running.set(pages=number)
        running.end("job_completed")
        topic = log(f"job:{number}")
        assert topic.types == ["job_started", "note", "job_completed"]
        assert topic.state["fields"] == {"pages": number}


def test_progress_that_was_never_due_is_in_the_end(runtime: Runtime, log: Look) -> None:
    running = Job(runtime, JobMeta("1"), 1)
    running.begin()
    running.progress(3, 10)
    running.end("job_completed")
    running.progress(4, 10)
    assert log("job:1").state["progress"] == {"current": 3, "total": 10}


def test_a_flush_waits_for_events_that_are_not_made_yet(
    runtime: Runtime, backend: MemoryBackend
) -> None:
    # More than the calls that are made without waiting.
    for number in range(50):
        running = Job(runtime, JobMeta(f"f{number}"), 1)
        running.begin()
        running.end("job_completed")
        if number % 10 == 9:
            assert runtime.emitter.flush(10)
            entries = backend._logs[f"job:f{number}"].entries
            assert [json.loads(one[0].json)["type"] for one in entries] == SPENT


def test_a_child_of_a_task_does_not_send_its_start_again(
    runtime: Runtime, backend: MemoryBackend, log: Look
) -> None:
    running = Job(runtime, JobMeta("1"), 1)
    push_job(running)
    with running._lock:
        # So the start is not made before the fork.
        running.begin()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                job.emit("note")
                runtime.emitter.flush(5)
                [only] = [json.loads(one[0].json) for one in backend._logs["job:1"].entries]
                is_complete = only["state"]["status"] == "running" and "worker" in only["state"]
                code = 0 if is_complete and only["type"] == "note" else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
    pop_job(running)
    assert os.waitstatus_to_exitcode(status) == 0
    running.end("job_completed")
    assert log("job:1").types == SPENT


def test_a_time_limit_while_a_task_makes_its_start_loses_neither_start_nor_end(
    runtime: Runtime, log: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TimeLimit(Exception):
        pass

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise TimeLimit

    running = Job(runtime, JobMeta("1"), 1)
    with running._lock:
        running.begin()
        with monkeypatch.context() as patch:
            patch.setattr(job_events, "make_checked_drafts", interrupted)
            with pytest.raises(TimeLimit):
                running.emit("note")
    running.end("job_failed")
    assert log("job:1").types == ["job_started", "job_failed"]


def test_a_task_that_is_called_while_an_exception_is_handled_completes(
    tracker: TaskTracker, log: Look
) -> None:
    try:
        raise ValueError("of the caller")
    except ValueError:
        add.apply((1, 2), task_id="1")
    assert log("job:1").types == SPENT


def test_drafts_that_cannot_be_made_hold_up_no_others(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> list[Draft]:
        raise RuntimeError("no")

    dropped: list[Draft] = []
    queue = Queue(10, 1000, dropped.append)
    one = Draft(topic="job:1", type="note", key="1", body=b"{}")
    queue.inbox.extend((fail, one, lambda: [two]))
    two = Draft(topic="job:2", type="note", key="2", body=b"{}")
    queue.drain()
    assert queue.next_batch(10) == [one, two]
    assert "emitter: drafts not made" in caplog.text
    assert not dropped


def test_a_crowded_queue_has_the_events_made_at_once(
    runtime: Runtime, makers: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Queue, "is_crowded", True)
    Job(runtime, JobMeta("1"), 1).begin()
    assert makers == [("job_started", True)]
