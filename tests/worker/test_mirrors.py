"""What is mirrored of a task: shapes of `update_state`, and what switches it off."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.app.task import Context
from celery.beat import ScheduleEntry, Scheduler
from hypothesis import given
from hypothesis import strategies as st
from topic_log import Log, wait_until

from semantik_realtime import job
from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import beat as beat_module
from semantik_realtime.worker.headers import note_ownerless
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.mirrors import Mirrors
from semantik_realtime.worker.selection import mirrors_of, note_announced
from semantik_realtime.worker.tracker import TaskTracker
from semantik_realtime.worker.updates import PERCENT, apply_update
from semantik_realtime.worker.values import misuse

Look = Callable[[str], Log]

app = Celery("mirrors_app", broker="memory://", backend="cache+memory://", set_as_current=False)


@app.task(bind=True)
def update(self: Task, state: str | None, meta: Any) -> None:
    self.update_state(state=state, meta=meta)


@app.task(bind=True)
def update_in_thread(self: Task) -> None:
    """What people do who hand work to threads: the thread knows the task's id, and nothing else."""
    task_id = self.request.id

    def work() -> None:
        assert job.id is None
        self.update_state(task_id=task_id, state="PROGRESS", meta={"current": 3, "total": 4})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@app.task(realtime=False)
def unseen() -> str | None:
    job.emit("note")
    return job.id


@app.task(bind=True, realtime={"updates": False})
def without_updates(self: Task) -> None:
    self.update_state(state="PROGRESS", meta={"current": 3, "total": 4})
    job.message("seen")


@app.task
def seen() -> None:
    pass


@pytest.fixture
def tracker(tracker: TaskTracker) -> Iterator[TaskTracker]:
    yield tracker
    assert not tracker.failures


def settings_with(**changes: Any) -> Settings:
    return Settings(backend="memory", **changes)


@pytest.mark.parametrize(
    ("meta", "progress"),
    [
        ({"current": 3, "total": 10}, (3, 10, None)),
        ({"current": "3", "total": "10", "unit": "files"}, (3, 10, "files")),
        ({"current": Decimal("2.5"), "total": 10}, (2.5, 10, None)),
        ({"current": 3, "total": "?"}, (3, None, None)),
        ({"progress": 25}, (25, 100, "%")),
        ({"percent": 25.5}, (25.5, 100, "%")),
        ({"percentage": "25 %"}, (25, 100, "%")),
        ({"progress": 0.25}, (0.25, 100, "%")),
        ({"progress": 3, "total": 12}, (3, 12, None)),
        ({"progress": 0.25, "total": 1}, (0.25, 1, None)),
        ({"progress": {"current": 3, "total": 10, "unit": "files"}}, (3, 10, "files")),
        ({"current": 3, "total": 10, "percent": 30.0}, (3, 10, None)),
        (25, (25, 100, "%")),
    ],
)
def test_the_shapes_that_people_use_are_the_progress(
    runtime: Runtime, log: Look, meta: Any, progress: tuple[Any, Any, Any]
) -> None:
    running = Job(runtime, JobMeta("1"), 1)
    running.begin()
    apply_update(running, "PROGRESS", meta)
    current, total, unit = progress
    expected = {"current": current, "total": total} | ({"unit": unit} if unit else {})
    state = log("job:1").state
    assert state["progress"] == expected
    assert "fields" not in state
    assert not misuse


@pytest.mark.parametrize(
    ("meta", "fields"),
    [
        ({"progress": "almost"}, {"progress": "almost"}),
        ({"progress": True}, {"progress": True}),
        ({"progress": None, "step": 2}, {"progress": None, "step": 2}),
        ({"percent": "1e400"}, {"percent": "1e400"}),
        ({"current": "a.pdf", "total": 3}, {"current": "a.pdf", "total": 3}),
        ({"progress": {"done": 3}}, {"progress": {"done": 3}}),
    ],
)
def test_what_is_no_amount_is_a_field(
    runtime: Runtime, log: Look, meta: Any, fields: dict[str, Any]
) -> None:
    running = Job(runtime, JobMeta("1"), 1)
    running.begin()
    apply_update(running, "PROGRESS", meta)
    state = log("job:1").state
    assert "progress" not in state
    assert state["fields"] == fields


class Reports:
    """What `apply_update` calls of a job."""

    id = "1"

    def __init__(self) -> None:
        self.amounts: list[tuple[Any, ...]] = []

    def progress(self, *amount: Any) -> None:
        self.amounts.append(amount)

    def message(self, text: Any) -> None:
        assert isinstance(text, str)

    def set(self, **fields: Any) -> None:
        pass

    def declare_end(self, type: str, error: Any) -> None:
        pass


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["current", "total", "unit", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = ["current", "total", "unit", "message", "status", "description", "state", "x", 5]


@given(
    st.sampled_from([None, "PROGRESS", "FAILURE", "MINE"]),
    VALUES | st.dictionaries(st.sampled_from([*NAMES, *PERCENT]), VALUES),
)
def test_an_update_of_any_shape_raises_nothing(state: str | None, meta: Any) -> None:
    job = Reports()
    apply_update(job, state, meta)  # type: ignore[arg-type]
    for current, total, *_ in job.amounts:
        assert not isinstance(current, str | bool)
        assert total is None or not isinstance(total, str | bool)


@pytest.mark.parametrize(
    ("state", "meta", "message"),
    [
        ("DOWNLOADING", {"percent": 3}, "DOWNLOADING"),
        ("DOWNLOADING", {"description": "a.pdf"}, "a.pdf"),
        ("PROGRESS", {"description": "", "status": "reading"}, "reading"),
        ("PROGRESS", {"message": ""}, ""),
        ("PROGRESS", "reading", "reading"),
    ],
)
def test_texts_and_custom_states_are_the_message(
    runtime: Runtime, log: Look, state: str, meta: Any, message: str
) -> None:
    running = Job(runtime, JobMeta("1"), 1)
    running.begin()
    apply_update(running, state, meta)
    running.emit("now")
    assert log("job:1").state["message"] == message


def test_a_failure_may_be_declared_with_the_exception_itself(runtime: Runtime) -> None:
    running = Job(runtime, JobMeta("1"), 1)
    apply_update(running, "FAILURE", ValueError("no such collection"))
    error = {"type": "ValueError", "message": "no such collection"}
    assert running.declared_end == ("job_failed", error)


@pytest.mark.usefixtures("tracker")
def test_a_thread_updates_the_job_of_the_task_id(log: Look, job_id: str) -> None:
    update_in_thread.apply(task_id=job_id)
    assert log(f"job:{job_id}").state["progress"] == {"current": 3, "total": 4}


@pytest.mark.usefixtures("tracker")
def test_after_the_task_its_id_is_nobodys(runtime: Runtime, log: Look, job_id: str) -> None:
    update.apply((None, {"current": 1}), task_id=job_id)
    count = len(log(f"job:{job_id}").events)
    update.update_state(task_id=job_id, state="PROGRESS", meta={"current": 2})
    assert len(log(f"job:{job_id}").events) == count


# What is mirrored at all.


@pytest.mark.usefixtures("tracker")
def test_a_task_may_switch_its_mirror_off(log: Look, job_id: str) -> None:
    result = unseen.apply(task_id=job_id)
    assert result.get() is None
    assert log(f"job:{job_id}").events == []


@pytest.mark.usefixtures("tracker")
def test_a_message_may_switch_the_mirror_off_or_on(log: Look, job_id: str) -> None:
    seen.apply(task_id=job_id, headers={"realtime": False})
    assert log(f"job:{job_id}").events == []
    unseen.apply(task_id=job_id, headers={"realtime": True})
    assert log(f"job:{job_id}").types == ["job_started", "note", "job_completed"]


@pytest.mark.usefixtures("tracker")
def test_a_task_may_switch_off_one_mirror(log: Look, job_id: str) -> None:
    without_updates.apply(task_id=job_id)
    state = log(f"job:{job_id}").state
    assert (state["message"], "progress" in state) == ("seen", False)
    without_updates.apply(task_id=f"{job_id}2", headers={"realtime": {"updates": True}})
    assert log(f"job:{job_id}2").state["progress"] == {"current": 3, "total": 4}


@pytest.mark.parametrize(
    ("patterns", "is_mirrored"),
    [
        ([], True),
        (["docs.*"], True),
        (["docs.*", "!docs.clean*"], True),
        (["!docs.clean*"], True),
        (["other.*"], False),
        (["!docs.*"], False),
        (["*", "!*.read"], False),
    ],
)
def test_patterns_of_the_settings_select_tasks(patterns: list[str], is_mirrored: bool) -> None:
    settings = settings_with(mirror_tasks=patterns)
    assert (mirrors_of("docs.read", {}, settings) is not None) == is_mirrored


def test_an_option_comes_before_the_patterns_and_a_header_before_the_option() -> None:
    nothing = settings_with(mirror_tasks=["!*"])
    assert mirrors_of(without_updates.name, {}, nothing) == Mirrors(updates=False)
    assert mirrors_of(unseen.name, {"realtime": {"logs": "warning"}}, nothing) == Mirrors(
        log_level=30
    )
    assert mirrors_of(without_updates.name, {"realtime": False}, settings_with()) is None
    assert mirrors_of(seen.name, {}, nothing) is None


def test_the_settings_switch_each_mirror() -> None:
    assert mirrors_of("x", {}, settings_with()) == Mirrors(True, True, None)
    settings = settings_with(mirror_updates=False, mirror_tqdm=False, mirror_logs="error")
    assert mirrors_of("x", {}, settings) == Mirrors(False, False, 40)
    assert mirrors_of("x", {"realtime": {"logs": True}}, settings) == Mirrors(False, False, 20)
    assert mirrors_of("x", {"realtime": {"logs": False}}, settings) == Mirrors(False, False, None)


@pytest.mark.parametrize("value", ["no", 3, {"logs": "loud"}, {"colour": True}, {"logs": [1]}])
def test_a_wrong_option_is_noted_and_the_task_is_mirrored(value: Any) -> None:
    assert mirrors_of("x", {"realtime": value}, settings_with()) == Mirrors()
    assert misuse.total() == 1


@pytest.mark.usefixtures("tracker")
def test_a_sender_that_knows_the_option_reports_no_job(
    log: Look, job_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    with app.connection_for_write() as connection:
        unseen.apply_async(task_id=job_id, connection=connection)
        seen.apply_async(task_id=f"{job_id}2", connection=connection)
    assert log(f"job:{job_id}").events == []
    assert log(f"job:{job_id}2").types == ["job_queued"]
    for _ in range(2):
        note_announced("mirrors_app.x", {"realtime_queued_at": "2026-01-01"})
    assert caplog.text.count("queued job is not mirrored task=mirrors_app.x") == 1


@pytest.mark.usefixtures("tracker")
def test_an_owner_that_is_a_uuid_travels_as_text_in_every_message() -> None:
    owner = uuid.uuid4()
    for task in (seen, unseen):
        headers: dict[str, Any] = {"id": str(uuid.uuid4()), "realtime_owner": owner}
        signals.before_task_publish.send(sender=task.name, headers=headers, body=((), {}, {}))
        assert headers["realtime_owner"] == str(owner)


def test_the_main_process_reports_no_end_of_a_task_without_a_mirror(
    tracker: TaskTracker, log: Look, job_id: str
) -> None:
    request = type("Request", (), {"id": job_id, "name": unseen.name})()
    request.request_dict = {"id": job_id, "task": unseen.name}
    signals.task_received.send(sender=None, request=request)
    signals.task_revoked.send(
        sender=unseen,
        request=Context(request.request_dict),
        terminated=False,
        expired=False,
        signum=None,
    )
    assert log(f"job:{job_id}").events == []


# Whose the jobs are that beat starts.


@pytest.fixture
def beat(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    monkeypatch.setattr(beat_module, "_threads", set())
    scheduler = Scheduler(app=app, lazy=True)
    # As the service does in the thread that then sends.
    signals.beat_init.send(sender=None)
    return scheduler


def send(beat: Scheduler, **options: Any) -> str:
    entry = ScheduleEntry(name="x", task=seen.name, schedule=1, app=app, options=options)
    return str(beat.apply_async(entry, producer=beat.producer).id)


@pytest.mark.parametrize(
    ("setting", "headers", "owner"),
    [
        (None, {}, None),
        (None, {"realtime_owner": "7"}, "7"),
        ("system", {}, "system"),
        ("system", {"realtime_owner": "7"}, "7"),
        ("system", {"realtime_owner": None}, None),
    ],
)
def test_a_job_of_beat_belongs_to_its_entrys_owner_or_the_settings(
    tracker: TaskTracker,
    settings: Settings,
    backend: Any,
    beat: Scheduler,
    reader: Any,
    setting: str | None,
    headers: dict[str, Any],
    owner: str | None,
) -> None:
    runtime = Runtime(settings.model_copy(update={"beat_owner": setting}), backend=backend)
    tracker.use(runtime)
    job_id = send(beat, headers=headers)
    assert runtime.emitter.flush(5)
    assert Log(reader, f"job:{job_id}").owner == owner
    runtime.close()


def test_what_a_task_sends_is_not_beats(
    tracker: TaskTracker, settings: Settings, backend: Any, reader: Any
) -> None:
    runtime = Runtime(settings.model_copy(update={"beat_owner": "system"}), backend=backend)
    tracker.use(runtime)
    sent = seen.apply_async()
    assert runtime.emitter.flush(5)
    wait_until(lambda: Log(reader, f"job:{sent.id}").events)
    assert Log(reader, f"job:{sent.id}").owner is None
    runtime.close()


def test_a_header_that_is_none_is_no_forgotten_owner(caplog: pytest.LogCaptureFixture) -> None:
    note_ownerless({"task": "mirrors_app.nobodys", "realtime_owner": None})
    assert "job without owner" not in caplog.text
    note_ownerless({"task": "mirrors_app.nobodys"})
    assert "job without owner task=mirrors_app.nobodys" in caplog.text
