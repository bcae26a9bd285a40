"""The topic of a job that waits for a time is kept beyond that time."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, Task

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import tracker as tracker_module
from semantik_realtime.worker.tracker import install
from semantik_realtime.worker.values import MAX_DUE_SECONDS, due_time

app = Celery("due_app", broker="memory://", backend="cache+memory://", set_as_current=False)


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task(bind=True)
def retry_once(self: Task, **when: Any) -> str:
    if not self.request.retries:
        raise self.retry(**(when or {"countdown": 5000}))
    return "done"


class Recording(MemoryBackend):
    """Keeps the time of each draft, by its type."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.due: dict[tuple[str, str], float | None] = {}

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        self.due |= {(draft.topic, draft.type): draft.due_at for draft in drafts}
        return super().publish(drafts)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    previous = tracker_module._tracker
    if previous is not None:
        previous.disconnect()
    monkeypatch.setattr(tracker_module, "_tracker", None)
    settings = Settings(backend="memory")
    backend = Recording(settings)
    runtime = Runtime(settings, backend=backend)
    tracker = install(runtime=runtime)
    yield backend
    tracker.disconnect()
    runtime.emitter.close()
    if previous is not None:
        previous.connect()


def due_of(backend: Recording, job_id: str, type: str) -> float | None:
    """Return what the job's event of this type said, when it was sent."""
    assert tracker_module._tracker is not None
    tracker_module._tracker.flush()
    return backend.due[f"job:{job_id}", type]


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize(
    "when",
    [
        {"countdown": 3600},
        {"eta": datetime.now(UTC) + timedelta(hours=1)},
        {"eta": datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)},
    ],
    ids=["countdown", "eta", "eta without zone"],
)
def test_a_queued_job_says_when_it_is_due(
    backend: Recording, protocol: int, when: dict[str, Any]
) -> None:
    app = Celery("protocol_app", broker="memory://", set_as_current=False)
    app.conf.task_protocol = protocol
    job_id = app.send_task("add", (1, 2), **when).id
    due_at = due_of(backend, job_id, "job_queued")
    assert due_at is not None
    assert abs(due_at - time.time() - 3600) < 300


def test_a_job_that_waits_for_no_time_says_nothing(backend: Recording) -> None:
    job_id = add.apply_async((1, 2)).id
    assert due_of(backend, job_id, "job_queued") is None


def test_a_job_that_is_retried_later_says_when(backend: Recording) -> None:
    job_id = str(uuid.uuid4())
    retry_once.apply(task_id=job_id)
    due_at = due_of(backend, job_id, "job_retrying")
    assert due_at is not None
    assert abs(due_at - time.time() - 5000) < 300
    assert due_of(backend, job_id, "job_completed") is None


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/New_York"])
def local_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the machine be in another time zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("local_zone")
@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5)), None])
def test_a_job_that_is_retried_at_a_time_says_when(
    backend: Recording, zone: timezone | None
) -> None:
    eta = datetime.now(UTC) + timedelta(seconds=5000)
    # Celery reads a time without a zone as one of UTC.
    eta = eta.replace(tzinfo=None) if zone is None else eta.astimezone(zone)
    job_id = str(uuid.uuid4())
    retry_once.apply(task_id=job_id, kwargs={"eta": eta})
    due_at = due_of(backend, job_id, "job_retrying")
    assert due_at is not None
    assert abs(due_at - time.time() - 5000) < 300


@pytest.mark.parametrize("when", [None, "soon", "2001-01-01T00:00:00+00:00", -5, [], 1 << 5000])
def test_what_is_no_time_to_come_is_none(when: object) -> None:
    assert due_time(when) is None


@pytest.mark.parametrize("when", [1e300, float("inf"), "9999-12-31T23:59:59"])
def test_a_time_that_is_too_far_is_bounded(when: object) -> None:
    found = due_time(when)
    assert found is not None
    assert 0 <= time.time() + MAX_DUE_SECONDS - found < 60
