"""Workers whose tasks are greenlets, of gevent and of eventlet: real workers, a real server."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import celery
import pytest
from celery_workers import Place, Worker, running
from topic_log import wait_until
from web_side import web_of

from semantik_realtime.testing.servers import Server

GREEN = ["gevent", "eventlet"]
CELERY = tuple(map(int, celery.__version__.split(".")[:2]))


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module", params=GREEN)
def green(
    request: pytest.FixtureRequest,
    broker: str,
    place: Place,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Worker]:
    with running(broker, place, request.param, tmp_path_factory.mktemp("worker")) as worker:
        yield worker
        check(worker)


def check(worker: Worker) -> None:
    for fault in ("receiver failed", "step failed", "thread: failed", "Logging error"):
        assert fault not in worker.output, worker.output[-5000:]


def test_progress_of_a_greenlet_that_computes_is_sent_while_it_does(green: Worker) -> None:
    waiting = green.send("wait_calmly", 1)
    log = green.log(f"job:{green.send('compute', 3)}")
    wait_until(lambda: log.events, 20)
    began = time.monotonic()
    # No other greenlet runs meanwhile, so this is what the thread of the emitter sends.
    wait_until(lambda: "progress" in log.state)
    first = log.state
    assert first["status"] == "running"
    wait_until(lambda: log.state["progress"] != first["progress"])
    assert log.state["status"] == "running"
    assert time.monotonic() - began < 3
    wait_until(lambda: log.state["status"] == "completed", 20)
    assert log.state["progress"]["current"] > first["progress"]["current"]
    # The others go on.
    green.wait_for(waiting, "completed")


async def test_a_task_that_is_cancelled_while_the_pool_is_full_does_not_run(green: Worker) -> None:
    async with web_of(green) as web:
        running = [green.send("work", 60, True) for _ in range(2)]
        for job_id in running:
            green.wait_for(job_id, "running")
        # Celery has given it to the pool, which waits for a greenlet to end.
        job_id = await web.queue(green, "add", 1, 2)
        wait_until(lambda: f"[{job_id}] received" in green.output)
        assert await web.cancel(job_id) == (200, "cancelled")
        for other in running:
            await web.stop(other)
            green.wait_for(other, "cancelled")
        green.wait_for(green.send("add", 1, 2), "completed")
    wait_until(lambda: green.app.AsyncResult(job_id).state == "REVOKED")
    assert green.log(f"job:{job_id}").types == ["job_queued", "job_cancelled"]
    assert f"Discarding revoked task: mirrored_app.add[{job_id}]" in green.output
    assert "Traceback" not in green.output


async def test_a_greenlet_that_asks_ends_its_job_as_cancelled(green: Worker) -> None:
    async with web_of(green) as web:
        job_id = green.send("work", 60, True)
        green.wait_for(job_id, "running")
        await web.stop(job_id)
        log = green.wait_for(job_id, "cancelled")
    assert log.last["data"] == {"how": "stopped"}
    wait_until(lambda: green.app.AsyncResult(job_id).state == "REVOKED")


def test_a_terminated_greenlet_cancels_its_job_and_the_others_go_on(green: Worker) -> None:
    job_id = green.send("wait_calmly", 3)
    other = green.send("wait_calmly", 1)
    log = green.log(f"job:{job_id}")
    wait_until(lambda: log.events and "fields" in log.state)
    green.app.control.revoke(job_id, terminate=True, destination=[f"{green.queue}@here"])
    if green.pool == "gevent" and CELERY < (5, 5):
        # Celery logs that its pool cannot, and the task runs on.
        log = green.wait_for(job_id, "completed")
    else:
        log = green.wait_for(job_id, "cancelled")
        assert log.last["data"] == {"how": "terminated"}
    assert log.state["fields"] == {"waiting": True}
    assert sum(event.get("terminal", False) for event in log.events) == 1
    green.wait_for(other, "completed")


def test_a_greenlet_that_computes_is_terminated_when_it_yields_and_its_job_ends_once(
    green: Worker,
) -> None:
    job_id = green.send("compute", 2)
    log = green.log(f"job:{job_id}")
    wait_until(lambda: log.events and "progress" in log.state)
    green.app.control.revoke(job_id, terminate=True, destination=[f"{green.queue}@here"])
    # It ends before the worker reads the command, or both at the same time.
    wait_until(lambda: log.state["status"] in ("completed", "cancelled"), 20)
    green.wait_for(green.send("add", 1, 2), "completed")
    assert sum(event.get("terminal", False) for event in log.events) == 1


@pytest.mark.parametrize("green", ["gevent"], indirect=True)
def test_a_hard_time_limit_of_a_greenlet_fails_its_job(green: Worker) -> None:
    log = green.wait_for(green.send("overrun"), "failed")
    assert log.state["error"] == {
        "type": "TimeLimitExceeded",
        "message": "TimeLimitExceeded(1,)",
    }
    assert log.state["progress"]["current"] == 5
    assert log.types.count("job_failed") == 1


@pytest.mark.parametrize("pool", GREEN)
def test_greenlets_run_while_the_backend_is_away_and_their_events_arrive_once(
    broker: str, server: Server, tmp_path: Path, pool: str
) -> None:
    with running(broker, Place("redis", server.url), pool, tmp_path) as worker:
        worker.wait_for(worker.send("add", 1, 2), "completed")
        hubs = count_hubs(worker)
        known = worker.output.count("backend fails")
        server.kill()
        job_ids = [worker.send("emit_many", 20) for _ in range(4)]
        begun = time.monotonic()
        for job_id in job_ids:
            worker.app.AsyncResult(job_id).get(timeout=20)
        assert time.monotonic() - begun < 10
        # Written by a greenlet, for the thread that noticed it.
        wait_until(lambda: worker.output.count("backend fails") > known, 20)
        # Several retries, each in a thread of its own.
        time.sleep(2)
        server.start()
        for job_id in job_ids:
            log = worker.wait_for(job_id, "completed", 30)
            numbers = [e["data"]["number"] for e in log.events if e["type"] == "note"]
            assert numbers == list(range(20))
            assert log.types.count("job_completed") == 1
        worker.wait_for(worker.send("add", 1, 2), "completed")
        # The hubs of threads that have ended do not stay.
        wait_until(lambda: count_hubs(worker) <= hubs, 20)
        check(worker)


def count_hubs(worker: Worker) -> int:
    """How many event loops the threads of a worker have open."""
    targets = []
    for path in Path(f"/proc/{worker.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(path))
    return sum("eventpoll" in target for target in targets)


@pytest.mark.parametrize("pool", GREEN)
def test_a_warm_stop_of_greenlets_sends_the_ends_of_their_jobs(
    broker: str, place: Place, tmp_path: Path, pool: str
) -> None:
    with running(broker, place, pool, tmp_path) as worker:
        job_ids = [worker.send("wait_calmly", 1) for _ in range(2)]
        for job_id in job_ids:
            worker.wait_for(job_id, "running")
        with contextlib.suppress(ProcessLookupError):
            worker.process.terminate()
        worker.process.wait(30)
        for job_id in job_ids:
            worker.wait_for(job_id, "completed")
