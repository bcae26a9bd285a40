"""A runtime on the row's backend, and the logs that it writes."""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery_workers import POOLS, Place, Worker
from celery_workers import running as worker_running
from topic_log import Log, Reader, wait_until

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import ROWS
from semantik_realtime.worker import tracker as tracker_module
from semantik_realtime.worker.current import pop_job, push_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.tracker import TaskTracker, install
from semantik_realtime.worker.values import misuse


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With TEST_POOLS, leave out the tests of other pools: what they test is the same code."""
    if not (wanted := os.environ.get("TEST_POOLS")):
        return
    others = set(POOLS) - set(wanted.split(","))
    left_out = [item for item in items if others & _parameters(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _parameters(item: pytest.Item) -> set[str]:
    callspec = getattr(item, "callspec", None)
    values = () if callspec is None else callspec.params.values()
    return {value for value in values if isinstance(value, str)}


@pytest.fixture(scope="module")
def default_row() -> str:
    """The memory backend: tests of one process need no server."""
    return "memory"


@pytest.fixture
def settings(row: str, server_url: Callable[[str], str]) -> Settings:
    return Settings(
        backend=ROWS[row].backend,
        url=server_url(row),
        prefix=f"t{secrets.token_hex(5)}",
        progress_seconds=0.0,
        feed_seconds=0.0,
    )


@pytest.fixture
def backend(settings: Settings) -> Any:
    return load_backend(settings)


@pytest.fixture
def runtime(settings: Settings, backend: Any) -> Iterator[Runtime]:
    runtime = Runtime(settings, backend=backend)
    yield runtime
    runtime.close()


@pytest.fixture
def reader(backend: Any) -> Iterator[Reader]:
    reader = Reader(backend)
    yield reader
    reader.close()


@pytest.fixture
def log(runtime: Runtime, reader: Reader) -> Callable[[str], Log]:
    """Return the log of a topic, after everything emitted so far is in it."""

    def look(topic: str) -> Log:
        wait_until(lambda: not runtime.emitter._throttled._due)
        assert runtime.emitter.flush(5)
        return Log(reader, topic)

    return look


@pytest.fixture(autouse=True)
def _no_misuse() -> Iterator[None]:
    misuse.clear()
    yield
    misuse.clear()


@pytest.fixture(scope="module")
def broker(server_url: Callable[[str], str]) -> Iterator[str]:
    """Celery's broker, the same for each row."""
    import mirrored_app

    url = server_url("valkey")
    before = mirrored_app.app.conf.broker_url, mirrored_app.app.conf.result_backend
    mirrored_app.app.conf.update(broker_url=url, result_backend=url)
    yield url
    mirrored_app.app.conf.update(broker_url=before[0], result_backend=before[1])


@pytest.fixture(name="running")
def running_job(runtime: Runtime) -> Iterator[Job]:
    """A job that runs in the context of the test."""
    running = Job(runtime, JobMeta("1"), 1)
    running.begin()
    push_job(running)
    yield running
    pop_job(running)


@pytest.fixture
def tracker(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskTracker]:
    """The tracker of this process, with a runtime of the test; afterwards the one before."""
    previous = tracker_module._tracker
    if previous is not None:
        previous.disconnect()
    monkeypatch.setattr(tracker_module, "_tracker", None)
    tracker = install(runtime=runtime)
    yield tracker
    tracker.disconnect()
    if previous is not None:
        previous.connect()


@pytest.fixture
def job_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture(scope="module")
def place(row: str, server_url: Callable[[str], str]) -> Place:
    return Place(ROWS[row].backend, server_url(row))


@pytest.fixture(scope="module", params=POOLS)
def worker(
    request: pytest.FixtureRequest,
    broker: str,
    place: Place,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Worker]:
    with worker_running(broker, place, request.param, tmp_path_factory.mktemp("worker")) as worker:
        yield worker
        assert "receiver failed" not in worker.output
        assert "step failed" not in worker.output
