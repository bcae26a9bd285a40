"""What a task reports, and what the log holds afterwards."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from topic_log import Log, Reader, wait_until

from semantik_realtime import job
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft
from semantik_realtime.core.lifecycle import RESERVED_TYPES
from semantik_realtime.errors import TopicError
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.current import current_job, pop_job, push_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.values import describe_error, misuse

Look = Callable[[str], Log]
RANKS = {"queued": 0, "running": 1, "retrying": 2, "completed": 3, "failed": 3, "cancelled": 3}


@pytest.fixture
def running(runtime: Runtime) -> Iterator[Job]:
    running = Job(runtime, JobMeta("1", "index", "7", ("collection:9",)), 1)
    running.begin()
    push_job(running)
    yield running
    pop_job(running)


def test_outside_a_job_every_method_does_nothing() -> None:
    job.progress(1, 2)
    job.emit("note", a=1)
    job.set(a=1)
    job.message("x")
    assert job.id is None
    assert job.attempt is None
    assert current_job() is None


def test_inside_a_job_the_facade_has_its_id_and_attempt(running: Job) -> None:
    assert (job.id, job.attempt) == ("1", 1)
    assert current_job() is running


def test_every_event_carries_the_whole_state(running: Job, log: Look) -> None:
    job.progress(3, 10, "a.txt", "files")
    job.set(failed=2)
    job.emit("file_completed", file="a.txt")
    event = log("job:1").last
    assert event["type"] == "file_completed"
    assert event["key"] == "1"
    assert event["data"] == {"file": "a.txt"}
    state = event["state"]
    assert state.pop("started_at") <= event["time"]
    assert state.pop("worker") == running.runtime.emitter.held.holder
    assert state == {
        "status": "running",
        "attempt": 1,
        "name": "index",
        "progress": {"current": 3, "total": 10, "unit": "files"},
        "message": "a.txt",
        "fields": {"failed": 2},
    }


def test_the_end_carries_the_last_progress_and_message(running: Job, log: Look) -> None:
    for number in range(1000):
        job.progress(number, 1000)
    job.message("done")
    running.end("job_completed")
    last = log("job:1").last
    assert last["type"] == "job_completed"
    assert last["terminal"] is True
    assert last["state"]["progress"] == {"current": 999, "total": 1000}
    assert last["state"]["message"] == "done"
    assert last["state"]["ended_at"] == last["time"] or last["state"]["ended_at"] < last["time"]


def test_the_last_progress_is_sent_without_an_end(running: Job, log: Look) -> None:
    for number in range(1000):
        job.progress(number, 1000)
    assert log("job:1").state["progress"]["current"] == 999
    assert log("user:7").state["progress"]["current"] == 999


def test_after_the_end_nothing_is_sent(running: Job, log: Look, runtime: Runtime) -> None:
    job.progress(1, 2)
    running.end("job_failed", error={"type": "E", "message": ""})
    before = [log(topic).types for topic in ("job:1", "user:7")]
    job.progress(2, 2)
    job.emit("note")
    job.set(a=1)
    job.message("x")
    running.send_pending()
    running.end("job_completed")
    assert [log(topic).types for topic in ("job:1", "user:7")] == before
    stats = runtime.emitter.stats
    assert (stats.stale, stats.closed) == (0, 0)


def test_feeds_get_life_and_progress_of_a_job_but_not_the_applications_events(
    running: Job, log: Look
) -> None:
    job.emit("file_completed", file="a")
    job.progress(1, 2)
    log("job:1")
    running.end("job_completed")
    assert "file_completed" in log("job:1").types
    for feed in ("user:7", "collection:9"):
        types = log(feed).types
        assert types[0] == "job_started"
        assert types[-1] == "job_completed"
        assert set(types[1:-1]) <= {"job_progress"}


def test_feeds_get_a_state_that_an_application_event_carried(running: Job, log: Look) -> None:
    job.set(a=1)
    job.emit("note")
    assert log("user:7").state["fields"] == {"a": 1}


def test_a_topic_belongs_to_the_owner_but_a_shared_feed_does_not(running: Job, log: Look) -> None:
    assert log("job:1").owner == "7"
    assert log("user:7").owner == "7"
    assert log("collection:9").owner is None


def test_progress_is_sent_to_feeds_less_often(backend: MemoryBackend, reader: Reader) -> None:
    settings = Settings(backend="memory", progress_seconds=0.01, feed_seconds=0.5)
    runtime = Runtime(settings, backend=backend)
    running = Job(runtime, JobMeta("1", None, "7"), 1)
    running.begin()
    own = Log(reader, "job:1")
    for number in range(1, 20):
        running.progress(number)
        wait_until(lambda: runtime.emitter.flush(5) and own.state.get("progress"))
        wait_until(lambda n=number: own.state["progress"]["current"] == n)  # type: ignore[misc]
    running.end("job_completed")
    runtime.close()
    assert own.types.count("job_progress") == 19
    assert Log(reader, "user:7").types.count("job_progress") < 10


def test_the_progress_of_a_tight_loop_is_sent_in_few_events(
    backend: MemoryBackend, reader: Reader
) -> None:
    settings = Settings(backend="memory", progress_seconds=60)
    runtime = Runtime(settings, backend=backend)
    running = Job(runtime, JobMeta("1"), 1)
    running.begin()
    for number in range(100_000):
        running.progress(number)
    running.end("job_completed")
    runtime.close()
    events = Log(reader, "job:1").events
    assert len(events) <= 3
    assert events[-1]["state"]["progress"]["current"] == 99_999


def test_each_progress_replaces_the_last_one_but_a_message_stays(running: Job, log: Look) -> None:
    job.progress(1, 2, "first", "files")
    log("job:1")
    job.progress(5)
    state = log("job:1").state
    assert state["progress"] == {"current": 5, "total": None}
    assert state["message"] == "first"


def test_a_state_that_did_not_change_is_not_sent_again(running: Job, log: Look) -> None:
    job.progress(1, 2)
    job.set(a=[1])
    count = len(log("job:1").events)
    job.progress(1, 2)
    job.set(a=[1])
    job.message("x")
    job.message("x")
    assert len(log("job:1").events) == count + 1


def test_a_field_keeps_its_value_if_the_object_changes_later(running: Job, log: Look) -> None:
    found = ["a"]
    job.set(found=found)
    found.append("b")
    assert log("job:1").state["fields"] == {"found": ["a"]}


@pytest.mark.parametrize(
    "call",
    [
        lambda: job.emit("note", value=object()),
        lambda: job.emit("note", value="x" * 70_000),
        lambda: job.emit("note", value="\udc80"),
        lambda: job.emit("Bad Type"),
        lambda: job.emit(5),  # type: ignore[arg-type]
        lambda: job.emit([]),  # type: ignore[arg-type]
        lambda: job.emit("job_completed"),
        lambda: job.set(value=object()),
        lambda: job.set(value="x" * 70_000),
        lambda: job.set(**{"\udc80": 1}),
        lambda: job.progress("3", 10),  # type: ignore[arg-type]
        lambda: job.progress(3, "10"),  # type: ignore[arg-type]
        lambda: job.progress(float("nan")),
        lambda: job.progress(2**60),
        lambda: job.progress(1, unit=5),  # type: ignore[arg-type]
        lambda: job.message(Path("x")),  # type: ignore[arg-type]
    ],
)
def test_a_bad_value_is_counted_logged_once_and_does_not_affect_later_calls(
    running: Job, log: Look, call: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = len(log("job:1").events)
    with caplog.at_level(logging.WARNING, "semantik_realtime"):
        for _ in range(3):
            call()
            assert len(log("job:1").events) == before
    assert sum(misuse.values()) == 3
    assert len(caplog.records) == 1
    job.progress(1, 2, "fine")
    job.set(good=1)
    job.emit("note", a=1)
    state = log("job:1").state
    assert state["fields"] == {"good": 1}
    assert state["progress"] == {"current": 1, "total": 2}
    assert state["message"] == "fine"
    running.end("job_completed")
    assert log("job:1").state["status"] == "completed"


def test_a_data_member_may_have_any_name(running: Job, log: Look) -> None:
    job.emit("note", type="pdf", self=1)
    job.set(self=2, type="x")
    event = log("job:1").last
    assert event["state"]["fields"] == {"self": 2, "type": "x"}
    assert log("job:1").events[1]["data"] == {"type": "pdf", "self": 1}


def test_a_message_of_undecodable_bytes_is_sent_with_replacements(running: Job, log: Look) -> None:
    job.message(os.fsdecode(b"caf\xe9.txt") + "\nsecond   line")
    assert log("job:1").state["message"] == "caf?.txt second line"


def test_a_message_is_cut_at_1000_characters(running: Job, log: Look) -> None:
    job.message("x" * 10_000)
    assert len(log("job:1").state["message"]) == 1000


def test_numbers_of_other_types_become_plain_numbers(running: Job, log: Look) -> None:
    from fractions import Fraction

    job.progress(Fraction(1, 2), 1)  # type: ignore[arg-type]
    assert log("job:1").state["progress"] == {"current": 0.5, "total": 1}


def test_an_end_arrives_even_if_the_state_is_too_big_for_an_event(
    backend: MemoryBackend, reader: Reader
) -> None:
    runtime = Runtime(Settings(backend="memory", max_event_bytes=400), backend=backend)
    running = Job(runtime, JobMeta("1", "n" * 100, "7"), 1)
    running.begin()
    running.set(a="x" * 150)
    running.end("job_failed", error={"type": "ValueError", "message": "y" * 500})
    runtime.close()
    state = Log(reader, "job:1").state
    assert state["status"] == "failed"
    assert state["error"] == {"type": "ValueError", "message": ""}
    assert Log(reader, "user:7").state["status"] == "failed"


def test_an_id_that_cannot_be_part_of_a_topic_is_refused(runtime: Runtime) -> None:
    with pytest.raises(TopicError):
        Job(runtime, JobMeta("a\nb"), 1)


def test_an_older_state_never_follows_a_newer_one(
    running: Job, runtime: Runtime, log: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = runtime.emitter.emit
    is_draft_made = threading.Event()
    is_newer_emitted = threading.Event()

    def emit_late(draft: Draft, *, can_wait: bool = False) -> None:
        if draft.type == "job_progress" and not is_draft_made.is_set():
            # Delays the emitter's thread between making a draft and queueing it.
            is_draft_made.set()
            is_newer_emitted.wait(0.2)
        emit(draft, can_wait=can_wait)

    monkeypatch.setattr(runtime.emitter, "emit", emit_late)
    job.progress(1)
    assert is_draft_made.wait(5)
    job.progress(2)
    job.emit("note")
    is_newer_emitted.set()
    own = log("job:1").events[1:]
    shown = [event["state"]["progress"]["current"] for event in own]
    assert shown[0] == 1
    assert shown[-1] == 2
    assert shown == sorted(shown)


def test_the_progress_of_a_new_attempt_does_not_wait_behind_an_ended_one(
    backend: MemoryBackend, reader: Reader
) -> None:
    runtime = Runtime(Settings(backend="memory", progress_seconds=0.2), backend=backend)
    first = Job(runtime, JobMeta("1"), 1)
    first.progress(1)
    wait_until(lambda: runtime.emitter.stats.appended == 1)
    first.progress(2)
    first.end("job_retrying")
    second = Job(runtime, JobMeta("1"), 2)
    second.progress(3)
    wait_until(lambda: Log(reader, "job:1").last["state"]["attempt"] == 2)
    runtime.close()
    assert Log(reader, "job:1").state["progress"]["current"] == 3


def test_statuses_never_go_back_even_with_an_outdated_attempt_in_other_threads(
    runtime: Runtime, backend: MemoryBackend, reader: Reader
) -> None:
    first = Job(runtime, JobMeta("1", None, "7"), 1)
    first.begin()
    stop = threading.Event()

    def report(outdated: Job) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            outdated.progress(number)
            outdated.emit("note")
            stop.wait(0.001)

    threads = [threading.Thread(target=report, args=(first,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: runtime.emitter.stats.appended > 20)
    first.end("job_retrying")
    second = Job(runtime, JobMeta("1", None, "7"), backend.claim("job:1", "1", "t", None))
    second.begin()
    first.has_ended = False  # as in a process that does not know of the newer attempt
    stale_before = runtime.emitter.stats.stale
    wait_until(lambda: runtime.emitter.stats.stale > stale_before + 10)
    second.end("job_completed")
    stop.set()
    for thread in threads:
        thread.join()
    runtime.close()
    for topic in ("job:1", "user:7"):
        ranks = [
            (event["state"]["attempt"], RANKS[event["state"]["status"]])
            for event in Log(reader, topic).events
        ]
        assert ranks == sorted(ranks)
        assert ranks[-1] == (2, 3)


def test_another_thread_may_use_the_job(running: Job, log: Look) -> None:
    def use(job: Job) -> None:
        assert current_job() is None
        job.set(from_thread=True)

    thread = threading.Thread(target=use, args=(running,))
    thread.start()
    thread.join()
    assert log("job:1").state["fields"] == {"from_thread": True}


def test_after_a_nested_job_the_outer_one_is_current_again(running: Job, runtime: Runtime) -> None:
    inner = Job(runtime, JobMeta("2"), 1)
    push_job(inner)
    assert job.id == "2"
    pop_job(inner)
    assert job.id == "1"


def test_a_forked_process_can_send_even_if_a_thread_of_the_parent_held_the_lock(
    running: Job, runtime: Runtime, backend: MemoryBackend
) -> None:
    held = threading.Event()
    go_on = threading.Event()

    def hold() -> None:
        with running._lock:
            running._is_due = True
            held.set()
            go_on.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job.emit("note")
            job.progress(1, 2)
            wait_until(lambda: not running._is_due, 5)
            runtime.emitter.flush(5)
            types = [json.loads(e[0].json)["type"] for e in backend._logs["job:1"].entries]
            code = 0 if {"note", "job_progress"} <= set(types) else 2
        finally:
            os._exit(code)
    go_on.set()
    thread.join()
    running._is_due = False
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_soft_time_limit_passes_through(
    running: Job, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Celery's soft time limit is raised in the middle of whatever the task does.
    class SoftTimeLimit(Exception):
        pass

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise SoftTimeLimit

    monkeypatch.setattr("semantik_realtime.worker.job_events.make_checked_drafts", interrupted)
    with pytest.raises(SoftTimeLimit):
        job.emit("note")


def test_an_error_is_its_type_and_message() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert describe_error(ValueError("no")) == {"type": "ValueError", "message": "no"}
    assert describe_error(Silent()) == {"type": "Silent", "message": ""}
    assert len(describe_error(ValueError("x" * 5000))["message"]) == 1000


@pytest.mark.every_backend
def test_a_tight_loop_of_events_is_as_fast_as_the_backend_and_loses_none(
    settings: Settings,
) -> None:
    few = settings.model_copy(update={"spool_drafts": 200, "retention_events": 10_000})
    runtime = Runtime(few)
    running = Job(runtime, JobMeta("tight", "index", "7", ()), 1)
    running.begin()
    for number in range(5000):
        running.emit("file_completed", number=number)
    running.end("job_completed")
    assert runtime.emitter.flush(60)
    runtime.close()
    assert runtime.emitter.stats.dropped == 0
    assert runtime.emitter.stats.appended >= 5002


def test_tasks_cannot_emit_the_types_of_a_jobs_life(running: Job, log: Look) -> None:
    before = log("job:1").types
    for type in RESERVED_TYPES:
        job.emit(type)
    assert log("job:1").types == before


def test_a_job_has_so_few_members_that_python_reads_them_fast(runtime: Runtime) -> None:
    # With 30 or more in its dictionary CPython 3.11 does not share the keys, and `progress` costs
    # a third more. `TaskContext` has slots for those that are rarely read.
    assert len(vars(Job(runtime, JobMeta("1"), 1, is_new=True))) < 30
