"""A backend that hangs (its server is stopped) changes no result and no time of a task.

Celery's broker is another server. Each claim is compared with a worker that
mirrors nothing, in the same test.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery_workers import Place, Worker, running
from topic_log import wait_until

from semantik_realtime.testing.servers import ROWS, Server

Outcome = tuple[str, float]
"""The task's state as Celery has it, and after how many seconds it was known."""
MORE_SECONDS = 1.0
"""What a loaded machine may add. A call to the backend would take 5 s (the setting's default)."""


def outcome_of(worker: Worker, name: str, *args: Any, **options: Any) -> Outcome:
    begun = time.monotonic()
    result = worker.app.AsyncResult(worker.send(name, *args, **options))
    with suppress(SoftTimeLimitExceeded, TimeLimitExceeded):
        result.get(timeout=60)
    return result.state, time.monotonic() - begun


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


Workers = Callable[..., tuple[Worker, Worker]]


@pytest.fixture
def pair(broker: str, row: str, server: Server, tmp_path: Path) -> Iterator[Workers]:
    """Start a worker that mirrors nothing, and one that mirrors to a server that hangs."""
    place = Place(ROWS[row].backend, server.url)
    with ExitStack() as stack:

        def start(pool: str = "prefork", **environment: str) -> tuple[Worker, Worker]:
            workers = []
            for mirror in ("false", "true"):
                directory = tmp_path / mirror
                directory.mkdir()
                settings = {"SEMANTIK_REALTIME_MIRROR": mirror, **environment}
                workers.append(
                    stack.enter_context(running(broker, place, pool, directory, **settings))
                )
            server.pause()
            return workers[0], workers[1]

        yield start
        server.resume()


def test_a_soft_time_limit_ends_a_task_as_without_us(pair: Workers, server: Server) -> None:
    unwatched, watched = pair()
    for _ in range(2):
        expected, expected_seconds = outcome_of(unwatched, "sleep", 10, soft_time_limit=1)
        state, seconds = outcome_of(watched, "sleep", 10, soft_time_limit=1)
        assert (state, expected) == ("FAILURE", "FAILURE")
        assert seconds < expected_seconds + MORE_SECONDS


def test_a_task_within_its_hard_time_limit_succeeds_as_without_us(pair: Workers) -> None:
    unwatched, watched = pair()
    for _ in range(3):
        expected, expected_seconds = outcome_of(unwatched, "add", 1, 2, time_limit=3)
        state, seconds = outcome_of(watched, "add", 1, 2, time_limit=3)
        assert (state, expected) == ("SUCCESS", "SUCCESS")
        assert seconds < expected_seconds + MORE_SECONDS


def test_processes_that_end_after_each_task_take_as_long_as_without_us(
    pair: Workers, server: Server
) -> None:
    unwatched, watched = pair(TEST_TASKS_PER_CHILD="1")
    took: list[float] = []
    for worker in (unwatched, watched):
        begun = time.monotonic()
        job_ids = [worker.send("emit_many", 3) for _ in range(12)]
        for job_id in job_ids:
            worker.app.AsyncResult(job_id).get(timeout=60)
        took.append(time.monotonic() - begun)
    # A process that waited for its events would take 2 s, as the setting allows.
    assert took[1] < 2 * took[0] + 3 * MORE_SECONDS
    # What the processes could not send, their parent does.
    server.resume()
    for job_id in job_ids:
        log = watched.wait_for(job_id, "completed", 30)
        assert log.types[-5:] == ["job_started", *["note"] * 3, "job_completed"]


def test_a_worker_that_stops_sends_what_its_processes_left(
    broker: str, row: str, server: Server, tmp_path: Path
) -> None:
    place = Place(ROWS[row].backend, server.url)
    settings = {"TEST_TASKS_PER_CHILD": "1", "SEMANTIK_REALTIME_FLUSH_SECONDS": "20"}
    with running(broker, place, "prefork", tmp_path, **settings) as worker:
        worker.wait_for(worker.send("add", 1, 2), "completed")
        server.pause()
        job_ids = [worker.send("emit_many", 3) for _ in range(3)]
        for job_id in job_ids:
            worker.app.AsyncResult(job_id).get(timeout=60)
        worker.process.terminate()
        wait_until(lambda: "Warm shutdown" in worker.output)
        time.sleep(0.5)
        server.resume()
        worker.process.wait(30)
        for job_id in job_ids:
            log = worker.log(f"job:{job_id}")
            assert log.types[-1] == "job_completed"
