"""A job is cancelled over HTTP: real workers, and Celery's own broker."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from celery_workers import Place, Worker, running
from fastapi import FastAPI
from topic_log import wait_until

from semantik_realtime import Realtime

SECRET = "a secret of at least thirty-two bytes"


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


class Web:
    """An application that uses the Celery application of the workers, as the user 7."""

    def __init__(self, rt: Realtime, http: httpx.AsyncClient) -> None:
        self.rt = rt
        self.http = http

    async def queue(self, worker: Worker, name: str, *args: Any, **options: Any) -> str:
        """Send a task whose job is shown as queued from the beginning; return its id."""
        job_id = str(uuid.uuid4())
        state = {"status": "queued", "attempt": 0, "name": f"mirrored_app.{name}"}
        await self.rt.publish(f"job:{job_id}", "job_queued", state=state, owner="7")
        return worker.send(name, *args, task_id=job_id, **options)

    async def stop(self, job_id: str) -> None:
        """Cancel a job whose task stops at once: it may be over before the request is answered."""
        assert await self.cancel(job_id) in [(202, "cancelling"), (200, "cancelled")]

    async def cancel(self, job_id: str) -> tuple[int, str]:
        answer = await self.http.post(f"/realtime/jobs/{job_id}/cancel")
        return answer.status_code, answer.json().get("status") or answer.text


@contextlib.asynccontextmanager
async def web_of(worker: Worker, **changes: Any) -> AsyncIterator[Web]:
    settings = worker.settings.model_copy(update={"jwt_secret": SECRET, **changes})
    rt = Realtime(type(settings)(**settings.model_dump(exclude_unset=True)))
    app = FastAPI()
    rt.install(app)
    token = jwt.encode({"sub": "7", "exp": time.time() + 600}, SECRET, "HS256")
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://here",
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
        ) as http,
    ):
        yield Web(rt, http)


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
    assert log.last["data"] == {"how": "requested"}
    wait_until(lambda: worker.app.AsyncResult(job_id).state == "REVOKED")


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
            worker.wait_for(job_id, "running")
            await web.stop(job_id)
            log = worker.wait_for(job_id, "cancelled")
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
