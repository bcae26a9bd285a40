"""A worker that is stopped before its tasks have ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import celery
import pytest
from celery_workers import Place, Worker, running
from topic_log import Log, wait_until

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


GREEN = ["gevent", "eventlet"]


def quit_at_once(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGQUIT)


def interrupt_twice(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGINT)
    while "Warm shutdown" not in worker.output:
        time.sleep(0.01)
    worker.process.send_signal(signal.SIGINT)


def terminate(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("stop", [quit_at_once, interrupt_twice, terminate])
def test_a_cold_stop_fails_the_jobs_whose_messages_nobody_gets_again(
    broker: str, place: Place, tmp_path: Path, stop: Callable[[Worker], None]
) -> None:
    environment = {"REMAP_SIGTERM": "SIGQUIT"} if stop is terminate else {}
    with running(broker, place, "prefork", tmp_path, **environment) as worker:
        early, late = worker.send("sleep", 60), worker.send("sleep_late", 60)
        for job_id in (early, late):
            worker.wait_for(job_id, "running")
        stop(worker)
        worker.process.wait(30)
        log = worker.wait_for(early, "failed")
        assert log.types[-2:] == ["job_started", "job_failed"]
        if CELERY < (5, 5):
            # Celery itself calls both tasks lost.
            assert log.state["error"]["type"] == "WorkerLostError"
            return
        assert log.state["error"]["type"] == "WorkerStopped"
        # The broker delivers its message to another worker.
        assert worker.log(f"job:{late}").types[-1] == "job_started"


@pytest.mark.parametrize("pool", GREEN)
def test_a_cold_stop_of_greenlets_fails_the_jobs_that_celery_leaves(
    broker: str, place: Place, tmp_path: Path, pool: str
) -> None:
    with running(broker, place, pool, tmp_path) as worker:
        job_id = worker.send("sleep", 4)
        worker.wait_for(job_id, "running")
        quit_at_once(worker)
        if CELERY >= (5, 5):
            # Celery ends the greenlets. Its own handler of the signal fails at that, in both
            # pools, and some versions run on until the task has ended.
            log = wait_for_end(worker, job_id)
        else:
            worker.process.wait(30)
            log = worker.wait_for(job_id, "failed")
        if log.state["status"] == "failed":
            assert log.state["error"]["type"] == "WorkerStopped"
        assert sum(event.get("terminal", False) for event in log.events) == 1


def wait_for_end(worker: Worker, job_id: str) -> Log:
    log = worker.log(f"job:{job_id}")
    wait_until(lambda: log.last.get("terminal"), 30)
    return log
