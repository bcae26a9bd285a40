"""What a host's test sees through the fixture ``realtime``, and what the fixture leaves behind."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain
from celery.contrib.testing.worker import start_worker
from topic_log import wait_until

from semantik_realtime import job, track
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.pytest_plugin import RealtimeFixture
from semantik_realtime.pytest_plugin.fixture import realtime_fixture
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.submit import submit
from semantik_realtime.worker.tracker import TaskTracker, install, swap_tracker

DEAD_URL = "redis://127.0.0.1:1/0"
queue = Celery("host", broker=DEAD_URL, set_as_current=False)
queue.conf.task_always_eager = True


@queue.task(name="index")
def index(*paths: str) -> int:
    for path in track(paths, "Indexing", unit="files"):
        job.emit("file_completed", file=path)
    return len(paths)


@queue.task(name="fail")
def fail() -> None:
    raise ValueError("no such folder")


def failure(call: Any, *args: Any, **given: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        call(*args, **given)
    return str(caught.value)


def test_an_eager_task_and_its_owner_are_seen(realtime: RealtimeFixture) -> None:
    sent = submit(index, "a", "b", owner="7", job_id="import:42")
    assert realtime.jobs == ["import:42"]
    assert realtime.owner(sent) == "7"
    assert realtime.types(sent) == realtime.types("import:42") == realtime.types(sent.topic)
    assert realtime.state("import:42")["status"] == "completed"
    assert realtime.types("user:7")[-1] == "job_completed"


def test_equal_ids_of_two_tests_do_not_meet(realtime: RealtimeFixture) -> None:
    with realtime_fixture({}) as other:
        submit(index, owner="8", job_id="import:42")
        assert other.owner("import:42") == "8"
    assert realtime.jobs == []
    assert realtime.events("import:42") == []
    assert realtime.state("import:42") == {}
    assert realtime.owner("import:42") is None


def test_a_task_that_outlives_its_test_writes_to_the_memory_of_that_test() -> None:
    may_go_on, has_ended = threading.Event(), threading.Event()

    @queue.task(name="slow")
    def slow() -> None:
        may_go_on.wait(30)

    def run() -> None:
        slow.apply(task_id="slow")
        has_ended.set()

    with realtime_fixture({}) as first:
        threading.Thread(target=run, daemon=True).start()
        first.wait_for("slow", "running")
    with realtime_fixture({}) as second:
        may_go_on.set()
        assert has_ended.wait(30)
        assert second.jobs == []


def test_events_are_compared_with_their_data_and_without_progress(
    realtime: RealtimeFixture,
) -> None:
    sent = index.delay("a", "b")
    last = ("file_completed", {"file": "b"})
    realtime.assert_events(sent, ["job_started", "file_completed", last, "job_completed"])
    said = failure(
        realtime.assert_events, sent, ["job_started", last, "file_completed", "job_completed"]
    )
    assert "+ file_completed\n  file_completed  file=b\n- file_completed\n" in said
    assert "job_progress" not in said.split("the events of")[0]


def test_a_failed_comparison_shows_the_difference_and_the_log(realtime: RealtimeFixture) -> None:
    sent = fail.delay()
    said = failure(realtime.assert_events, sent, ["job_started", "job_completed"])
    assert "  job_started\n- job_completed\n+ job_failed\n" in said
    assert "status=failed  attempt=1" in said
    assert "no such folder" in said


def test_a_comparison_waits_for_the_rest_and_no_longer(realtime: RealtimeFixture) -> None:
    realtime.publish("job:1", "job_started")
    threading.Timer(0.1, realtime.publish, ["job:1", "job_completed"]).start()
    realtime.assert_events("1", ["job_started", "job_completed"])
    # It has ended, and has begun otherwise: nothing is waited for.
    failure(realtime.assert_events, "1", ["job_started", "job_completed", "x"], 3600)
    failure(realtime.assert_events, "1", ["job_queued", "job_completed"], 3600)
    realtime.publish("job:2", "job_started")
    failure(realtime.assert_events, "2", ["job_started", "job_completed"], 0.05)


def test_progress_counts_once_if_it_is_named(realtime: RealtimeFixture) -> None:
    realtime.publish("job:1", "job_started")
    for current in range(5):
        state = {"status": "running", "progress": {"current": current, "total": 5}}
        realtime.publish("job:1", "job_progress", state=state)
    realtime.publish("job:1", "job_completed")
    realtime.assert_events("1", ["job_started", "job_progress", "job_completed"])
    realtime.assert_events("1", ["job_started", "job_completed"])


def test_wait_for_returns_the_event_of_a_status_or_of_a_type(realtime: RealtimeFixture) -> None:
    sent = index.delay("a")
    assert realtime.wait_for(sent, "running")["type"] == "job_started"
    assert realtime.wait_for(sent, "file_completed")["data"] == {"file": "a"}
    assert realtime.wait_for(sent, "completed")["terminal"] is True


def test_a_job_that_ends_otherwise_is_not_waited_for(realtime: RealtimeFixture) -> None:
    sent = fail.delay()
    said = failure(realtime.wait_for, sent, "complete", timeout_seconds=3600)
    assert said.startswith(f"no 'complete' of job:{sent.id}, it has ended\nIs 'completed' meant?")
    assert "job_failed" in said


def test_a_wait_that_is_over_says_what_else_there_is(realtime: RealtimeFixture) -> None:
    realtime.publish("job:1", "job_started")
    said = failure(realtime.wait_for, "2", "completed", timeout_seconds=0.05)
    assert "waited 0.05 s\nThere are events of job:1.\nA worker in another process" in said
    assert "job:2 has no events" in said


async def test_a_coroutine_waits_while_its_loop_goes_on(realtime: RealtimeFixture) -> None:
    waiting = realtime.wait_for_async("1", "completed")
    receipt = await realtime.runtime.publish("job:1", "job_completed")
    assert receipt.outcome is Outcome.APPENDED
    assert (await waiting)["type"] == "job_completed"


@pytest.mark.parametrize("backend", ["redis", "memory"])
async def test_every_configured_runtime_uses_the_memory_meanwhile(backend: str) -> None:
    settings = Settings(backend=backend, url=DEAD_URL)
    before = Runtime(settings)
    with realtime_fixture({}) as realtime:
        for number, runtime in enumerate([before, Runtime(settings), realtime.runtime]):
            receipt = await runtime.publish(f"job:{number}", "job_started", owner="7")
            assert receipt.outcome is Outcome.APPENDED
        assert realtime.jobs == ["0", "1", "2"]
        assert await before.delete("1") is True


async def test_a_runtime_that_was_given_its_backend_keeps_it(runtime: Runtime) -> None:
    with realtime_fixture({}) as realtime:
        await runtime.publish("job:1", "job_started")
        assert realtime.jobs == []


async def test_what_waits_for_a_server_waits_on_and_is_not_sent_to_the_memory(
    tmp_path: Path,
) -> None:
    settings = Settings(url=DEAD_URL, spool_directory=str(tmp_path), flush_seconds=0.1)
    runtime = Runtime(settings)
    receipt = await runtime.publish("job:old", "note", timeout_seconds=0.1)
    assert receipt.outcome is Outcome.WAITING

    def stored() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*.drafts")}

    # A file is made before it is written.
    wait_until(lambda: any(stored().values()))
    before = stored()
    with realtime_fixture({}) as realtime:
        for one in (runtime, made := Runtime(settings)):
            one.emitter.recover()
            await one.publish("job:new", "note")
        assert realtime.jobs == ["new"]
        assert stored() == before
    assert runtime.emitter.waiting == 1
    receipt = await made.publish("job:later", "note", timeout_seconds=0.1)
    assert receipt.outcome is Outcome.WAITING
    for one in (runtime, made):
        one.close(0.1)


@pytest.fixture
def no_tracker() -> Iterator[None]:
    """Begin as in a process that has not called `install`."""
    before = swap_tracker(None)
    if before is not None:
        before.disconnect()
    yield
    current = swap_tracker(before)
    if current is not None and current is not before:
        current.disconnect()


@pytest.mark.usefixtures("no_tracker")
@pytest.mark.parametrize("is_installed", [False, True])
def test_afterwards_the_tracker_is_as_before(is_installed: bool, runtime: Runtime) -> None:
    before = install(queue, runtime) if is_installed else None
    with realtime_fixture({}) as realtime:
        assert isinstance(install(queue), TaskTracker)
        assert install(queue) is not before
        index.delay()
        assert len(realtime.jobs) == 1
    found = swap_tracker(before)
    assert found is before
    assert before is None or before.is_connected
    index.delay()
    assert len(realtime.jobs) == 1


def test_a_job_of_several_tasks_begins_anew_in_each_test() -> None:
    # No worker runs: only what is published is looked at.
    app = Celery("jobs", broker="memory://", set_as_current=False)
    seen = []
    for _ in range(2):
        with realtime_fixture({}) as realtime:
            for _ in range(2):
                app.send_task("add", headers={"realtime_job": "nightly", "realtime_owner": "7"})
            events = realtime.events("nightly")
            seen.append([event["type"] for event in events if event["key"] == "nightly"])
    assert seen == [["job_queued"], ["job_queued"]]


@pytest.mark.parametrize("is_eager", [True, False])
def test_a_workflow_ends_and_its_members_do_not_end_it(
    is_eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker would replace the handlers and the level of the root logger, for all later tests.
    monkeypatch.setattr("celery.app.log.Logging.setup", lambda *args, **options: False)
    app = Celery("flow", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_always_eager=is_eager)

    @app.task(name="add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    # A second one with the same id is another one. (A worker needs seconds to stop.)
    for _ in range(2 if is_eager else 1):
        with contextlib.ExitStack() as stack:
            realtime = stack.enter_context(realtime_fixture({}))
            if not is_eager:
                stack.enter_context(start_worker(app, perform_ping_check=False))
            submit(chain(add.s(1, 2), add.s(3)), owner="7", job_id="flow")
            end = realtime.wait_for("flow", "completed", 20)
            assert end["key"] == "flow"
            assert realtime.state("flow")["progress"] == {"current": 2, "total": 2, "unit": "tasks"}
            said = failure(realtime.wait_for, "flow", "failed")
            assert re.search(r"job_completed  key=\S+ add  status=completed", said)


def test_no_thread_is_left_and_no_event() -> None:
    before = set(threading.enumerate())
    with realtime_fixture({}) as realtime:
        submit(index, "a", owner="7")
        submit(chain(index.si("a"), index.si("b")), owner="7")
    wait_until(lambda: set(threading.enumerate()) <= before)
    kept = weakref.ref(realtime)
    memory = weakref.ref(realtime._memory)
    del realtime
    gc.collect()
    assert (kept(), memory()) == (None, None)


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "URL": DEAD_URL,
        "BACKEND": "nobody",
        "MIRROR": "false",
        "PREFIX": "not a prefix!",
        "RETENTION_EVENTS": "many",
        "SPOOL_DIRECTORY": str(tmp_path),
        "WORKER_METRICS": "127.0.0.1:1",
    }.items():
        monkeypatch.setenv(f"SEMANTIK_REALTIME_{name}", value)
    with realtime_fixture({"retention_events": 7}) as realtime:
        sent = index.delay("a")
        realtime.wait_for(sent, "completed")
        assert realtime.runtime.settings.retention_events == 7
        assert realtime.runtime.settings.spool_directory is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_tracker")
def test_without_celery_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with realtime_fixture({}) as realtime:
        index.delay("a")
        realtime.publish("job:1", "job_started")
        assert realtime.jobs == ["1"]
