"""A job is cancelled over HTTP: real workers, and Celery's own broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery_workers import Place, Worker, running
from topic_log import wait_until
from web_side import web_of


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module", params=["prefork", "threads", "solo"])
def worker(
    request: pytest.FixtureRequest,
    broker: str,
    place: Place,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Worker]:
    with running(broker, place, request.param, tmp_path_factory.mktemp("worker")) as worker:
        yield worker
        assert "receiver failed" not in worker.output
        assert "listener: ended" not in worker.output


async def test_a_task_that_asks_ends_its_job_as_cancelled(worker: Worker) -> None:
    async with web_of(worker) as web:
        job_id = worker.send("work", 60, True)
        worker.wait_for(job_id, "running")
        await web.stop(job_id)
        log = worker.wait_for(job_id, "cancelled")
    assert {event["state"]["status"] for event in log.events[:-1]} <= {"running", "cancelling"}
    assert log.last["data"] == {"how": "stopped"}
    assert log.last["terminal"] is True
    assert log.state["progress"]["current"] > 0
    result = worker.app.AsyncResult(job_id)
    wait_until(lambda: result.state == "REVOKED")


async def test_a_task_that_never_asks_is_shown_as_cancelling_until_it_completes(
    worker: Worker,
) -> None:
    async with web_of(worker) as web:
        job_id = worker.send("work", 3, False)
        log = worker.wait_for(job_id, "running")
        # Only a job that has run for a second hears of it without asking.
        wait_until(lambda: log.state["progress"]["current"] > 120)
        assert await web.cancel(job_id) == (202, "cancelling")
        assert await web.cancel(job_id) == (202, "cancelling")
        log = worker.wait_for(job_id, "completed")
    statuses = [event["state"]["status"] for event in log.events]
    assert statuses[-2:] == ["cancelling", "completed"]
    assert log.types.count("job_cancelling") == 1


async def test_a_job_that_waits_for_its_time_is_cancelled_at_once(worker: Worker) -> None:
    async with web_of(worker) as web:
        job_id = await web.queue(worker, "add", 1, 2, countdown=3600)
        wait_until(lambda: f"[{job_id}] received" in worker.output)
        assert await web.cancel(job_id) == (200, "cancelled")
        # Again, because an answer may be lost on its way.
        assert await web.cancel(job_id) == (200, "cancelled")
    log = worker.log(f"job:{job_id}")
    assert log.types == ["job_queued", "job_cancelled"]
    # The worker may be faster than the web server.
    assert log.last["data"]["how"] in ("requested", "revoked")


async def test_a_task_that_celery_revokes_before_its_time_is_cancelled_at_once(
    worker: Worker,
) -> None:
    async with web_of(worker) as web:
        job_id = await web.queue(worker, "add", 1, 2, countdown=3600)
        wait_until(lambda: f"[{job_id}] received" in worker.output)
        worker.app.control.revoke(job_id)
        log = worker.wait_for(job_id, "cancelled")
    assert log.last["data"] == {"how": "revoked"}


async def test_an_abortable_task_that_was_told_ends_its_job_as_cancelled(worker: Worker) -> None:
    async with web_of(worker) as web:
        job_id = worker.send("work_until_aborted")
        worker.wait_for(job_id, "running")
        await web.stop(job_id)
        log = worker.wait_for(job_id, "cancelled")
    assert log.last["data"] == {"how": "stopped"}


async def test_a_signal_ends_the_task_at_once_where_the_pool_can(worker: Worker) -> None:
    async with web_of(worker, cancel_signal="SIGTERM") as web:
        if worker.pool == "prefork":
            job_id = worker.send("wait")
            log = worker.wait_for(job_id, "running")
            wait_until(lambda: "fields" in log.state)
            await web.stop(job_id)
            worker.wait_for(job_id, "cancelled")
            assert log.last["data"] == {"how": "terminated"}
            assert log.state["fields"] == {"waiting": True}
        elif worker.pool == "threads":
            job_id = worker.send("work", 60, True)
            worker.wait_for(job_id, "running")
            await web.stop(job_id)
            worker.wait_for(job_id, "cancelled")
            assert f"not terminated, this pool cannot jobs={job_id}" in worker.output
            assert "NotImplementedError" not in worker.output


async def test_a_job_that_is_cancelled_while_no_worker_runs_is_not_started_later(
    broker: str, place: Place, tmp_path: Path
) -> None:
    with running(broker, place, "threads", tmp_path) as first:
        worker = first
    async with web_of(worker) as web:
        job_id = await web.queue(worker, "add", 1, 2)
        assert await web.cancel(job_id) == (200, "cancelled")
        with running(broker, place, "threads", tmp_path, prefix=worker.queue) as again:
            wait_until(lambda: "Discarding revoked task" in again.output, 20)
            log = again.log(f"job:{job_id}")
            again.wait_for(again.send("add", 1, 2), "completed")
            assert log.types == ["job_queued", "job_cancelled"]


@pytest.mark.parametrize("worker", ["threads"], indirect=True)
async def test_a_task_that_is_cancelled_while_it_waits_inside_the_pool_does_not_run(
    worker: Worker,
) -> None:
    # Two threads run, and the other tasks wait in the pool, where Celery looks at no revocation.
    async with web_of(worker) as web:
        running = [worker.send("work", 60, True) for _ in range(2)]
        for job_id in running:
            worker.wait_for(job_id, "running")
        requested, revoked = [await web.queue(worker, "add", 1, number) for number in (2, 3)]
        for job_id in (requested, revoked):
            wait_until(lambda job_id=job_id: f"[{job_id}] received" in worker.output)
        assert await web.cancel(requested) == (200, "cancelled")
        worker.app.control.revoke(revoked)
        log = worker.wait_for(revoked, "cancelled")
        assert log.last["data"] == {"how": "revoked"}
        for job_id in running:
            await web.stop(job_id)
            worker.wait_for(job_id, "cancelled")
        # The pool gets to it later than to the others.
        worker.wait_for(worker.send("add", 1, 2), "completed")
    for job_id in (requested, revoked):
        wait_until(lambda job_id=job_id: worker.app.AsyncResult(job_id).state == "REVOKED")
        assert worker.log(f"job:{job_id}").types == ["job_queued", "job_cancelled"]
        assert f"Discarding revoked task: mirrored_app.add[{job_id}]" in worker.output


@pytest.mark.parametrize("worker", ["threads"], indirect=True)
def test_a_task_that_is_revoked_after_its_thread_has_begun_runs(worker: Worker) -> None:
    job_id = worker.send("wait_calmly", 1)
    worker.wait_for(job_id, "running")
    worker.app.control.revoke(job_id)
    log = worker.wait_for(job_id, "completed")
    assert log.types.count("job_started") == 1
    assert sum(event.get("terminal", False) for event in log.events) == 1
