"""The cases of Celery's table with RabbitMQ as the broker: real workers, a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery_workers import Place, Worker
from rabbitmq import RabbitServer
from topic_log import wait_until

from semantik_realtime.testing.servers import ServerMissing
from semantik_realtime.testing.servers import running as serving


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module")
def rabbit() -> Iterator[str]:
    """The URL of a running server."""
    try:
        server = RabbitServer()
    except ServerMissing as error:
        pytest.skip(str(error))
    with serving(server):
        yield server.url


@pytest.fixture(scope="module")
def start(rabbit: str, place: Place, server_url: Callable[[str], str]) -> Callable[..., Worker]:
    """Start a worker whose broker is RabbitMQ, and whose results are in the row's server."""
    results = server_url("valkey")

    def start(pool: str, directory: Path, queue: str) -> Worker:
        worker = Worker(results, place, pool, directory, queue, TEST_BROKER_URL=rabbit)
        worker.app = Celery("sender", broker=rabbit, backend=results, set_as_current=False)
        return worker

    return start


@pytest.fixture(scope="module")
def worker(
    start: Callable[..., Worker], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    worker = start("prefork", tmp_path_factory.mktemp("worker"), "rabbit")
    try:
        yield worker
        assert "receiver failed" not in worker.output
    finally:
        worker.stop()


CASES = {
    "success": ("add", (1, 2), 1, "completed"),
    "failure": ("fail", ("secret",), 1, "failed"),
    "retry": ("retry", (2,), 3, "completed"),
    "autoretry": ("retry_automatically", (), 3, "completed"),
    "replaced by a task": ("replace", (), 2, "completed"),
    "replaced by a chain": ("replace_by_chain", (), 2, "completed"),
    "replaced by a group": ("replace_by_group", (), 2, "completed"),
    "replaced by a chord": ("replace_by_chord", (), 2, "completed"),
    "ignored": ("ignore", (), 1, "completed"),
    "rejected": ("reject", (), 1, "failed"),
    "requeued": ("reject_once", (), 2, "completed"),
    "hard time limit": ("overrun", (), 1, "failed"),
    "soft time limit": ("overrun_softly", (), 1, "failed"),
    "exit": ("exit_process", ("exit",), 1, "failed"),
    "killed child": ("exit_process", ("kill",), 1, "failed"),
}


def test_the_cases_of_celery_end_with_rabbitmq_as_with_redis(worker: Worker) -> None:
    job_ids = {case: worker.send(name, *args) for case, (name, args, *_) in CASES.items()}
    for case, (_, _, attempt, status) in CASES.items():
        log = worker.wait_for(job_ids[case], status, 60)
        assert log.statuses[-1] == (attempt, status), case
        assert log.owner == "7", case
        assert sum(event.get("terminal", False) for event in log.events) == 1, case


def test_a_redelivered_task_of_a_killed_child_completes_with_rabbitmq(worker: Worker) -> None:
    log = worker.wait_for(worker.send("exit_process_once"), "completed")
    assert log.statuses[-1][0] in (1, 2)


def test_revoked_expired_and_unknown_tasks_end_with_rabbitmq(worker: Worker) -> None:
    destination = [f"{worker.queue}@here"]
    # With the reply: the task comes on another queue, and could come first.
    known = worker.app.control.revoke(
        "revoked-before", destination=destination, reply=True, timeout=20
    )
    assert known
    worker.wait_for(worker.send("add", 1, 2, task_id="revoked-before"), "cancelled")
    worker.wait_for(worker.send("add", 1, 2, expires="2020-01-01T00:00:00+00:00"), "cancelled")
    worker.wait_for(worker.send("no_such_task"), "failed")
    running_id = worker.send("wait")
    log = worker.log(f"job:{running_id}")
    wait_until(lambda: log.events and "fields" in log.state)
    worker.app.control.revoke(running_id, terminate=True, destination=destination)
    assert worker.wait_for(running_id, "cancelled").last["data"] == {"how": "terminated"}


def test_what_a_task_publishes_is_queued_and_has_its_owner_with_rabbitmq(worker: Worker) -> None:
    log = worker.wait_for(result_of(worker, worker.send("spawn")), "queued")
    assert log.owner == "7"
    for kind in ("chain", "chord", "chunks"):
        for job_id in result_of(worker, worker.send("start", kind)):
            assert worker.wait_for(job_id, "completed").owner == "7"


def result_of(worker: Worker, job_id: str) -> Any:
    """Read it without an `AsyncResult`, which unsubscribes when it is collected."""
    backend = worker.app.backend
    wait_until(lambda: backend.get_state(job_id) == "SUCCESS", 30)
    return backend.get_result(job_id)


def test_a_message_of_a_killed_worker_is_a_second_attempt_in_the_next_one(
    start: Callable[..., Worker], tmp_path: Path
) -> None:
    (tmp_path / "next").mkdir()
    first = start("solo", tmp_path, "killed")
    try:
        job_id = first.send("wait_until_redelivered")
        first.wait_for(job_id, "running")
    finally:
        first.process.kill()
        first.process.wait()
    # RabbitMQ delivers it again as soon as the connection is lost.
    following = start("solo", tmp_path / "next", "killed")
    try:
        log = following.wait_for(job_id, "completed")
        assert log.statuses == [(1, "running"), (2, "running"), (2, "completed")]
    finally:
        following.stop()
        first.stop()
