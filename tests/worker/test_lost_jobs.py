"""Workers that die or freeze, with two web servers that look for their jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import chain, group
from celery_workers import Place, Worker
from fleets import LEASE_SECONDS, Fleet, children_of, fleet, kill_tree
from topic_log import Log, wait_until
from workflow_runs import completed, finish_job, states_of, submitting, tasks_of, tracking

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.testing.servers import RedisServer

BOUND_SECONDS = LEASE_SECONDS + 2
"""The setting, and what a busy machine needs."""


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module")
def servers(broker: str, place: Place) -> Iterator[Fleet]:
    with fleet(broker, place) as made:
        yield made


def events_of(worker: Worker, job_id: str) -> list[str]:
    """Return the types of a job's events in the feed of its owner."""
    return [e["type"] for e in worker.log("user:7").events if e["key"] == job_id]


def check_lost_once(worker: Worker, job_id: str) -> Log:
    log = worker.wait_for(job_id, "lost")
    assert log.last["terminal"] is True
    assert log.state["error"]["type"] == "Lost"
    assert log.last["data"] == {"reason": "lease"}
    wait_until(lambda: events_of(worker, job_id)[-1:] == ["job_lost"])
    # Both servers have looked again.
    time.sleep(1)
    assert log.types.count("job_lost") == 1
    assert events_of(worker, job_id).count("job_lost") == 1
    return log


@pytest.mark.parametrize(("pool", "task"), [("prefork", "emit_without_end"), ("solo", "spin")])
def test_the_jobs_of_a_killed_worker_are_lost_within_the_setting_once(
    servers: Fleet, tmp_path: Path, pool: str, task: str
) -> None:
    with servers.worker(pool, tmp_path) as worker:
        job_id = worker.send(task, *([60] if task == "spin" else []))
        worker.wait_for(job_id, "running")
        if task == "spin":
            # It keeps its lease for as long as it lives.
            time.sleep(LEASE_SECONDS + 1)
            assert worker.log(f"job:{job_id}").state["status"] == "running"
        began = time.monotonic()
        kill_tree(worker)
        log = worker.wait_for(job_id, "lost")
        assert time.monotonic() - began < BOUND_SECONDS
        check_lost_once(worker, job_id)
        assert log.state["attempt"] == 1
        assert log.owner == "7"


def test_a_job_that_waits_for_its_retry_is_not_lost_with_its_worker(
    servers: Fleet, tmp_path: Path
) -> None:
    with servers.worker("prefork", tmp_path) as worker:
        job_id = worker.send("retry_later")
        log = worker.wait_for(job_id, "retrying")
        assert log.state["eta"] > log.last["time"]
        kill_tree(worker)
        time.sleep(BOUND_SECONDS)
        assert log.state["status"] == "retrying"


def test_a_frozen_worker_is_lost_and_what_it_sends_afterwards_is_refused(
    servers: Fleet, tmp_path: Path
) -> None:
    with servers.worker("solo", tmp_path) as worker:
        job_id = worker.send("sleep", 2 * LEASE_SECONDS)
        worker.wait_for(job_id, "running")
        worker.process.send_signal(signal.SIGSTOP)
        check_lost_once(worker, job_id)
        time.sleep(LEASE_SECONDS)
        worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: "SEMANTIK_REALTIME_LEASE_SECONDS" in worker.output, 20)
        # It goes on, and its next job is as any other.
        worker.wait_for(worker.send("add", 1, 2), "completed")
        log = worker.log(f"job:{job_id}")
        assert log.state["status"] == "lost"
        assert log.types[-1] == "job_lost"
        assert worker.output.count("lease was over") == 1


def test_the_result_backend_is_asked_before_a_job_is_lost(servers: Fleet, tmp_path: Path) -> None:
    expected = {
        "SUCCESS": "completed",
        "FAILURE": "failed",
        "REVOKED": "cancelled",
        "RETRY": "lost",
    }
    with servers.worker("threads", tmp_path, TEST_CONCURRENCY="4") as worker:
        jobs = {state: worker.send("store_and_hang", state) for state in expected}
        for job_id in jobs.values():
            log = worker.log(f"job:{job_id}")
            wait_until(lambda log=log: log.events and "fields" in log.state)
        kill_tree(worker)
        for state, status in expected.items():
            log = worker.wait_for(jobs[state], status)
            assert log.state["fields"] == {"stored": True}
            if status == "failed":
                assert log.state["error"] == {"type": "ValueError", "message": "no pages"}


def test_the_result_backend_is_asked_for_the_last_task_that_has_the_id_of_its_workflow(
    servers: Fleet, tmp_path: Path
) -> None:
    with servers.worker("threads", tmp_path) as worker, tracking(worker.settings):
        task = tasks_of(worker)
        last = task("store_and_hang", "SUCCESS").set(immutable=True)
        result = chain(task("add", 1, 2), last).apply_async(headers={"realtime_owner": "7"})
        log, key = worker.log(f"job:{result.id}"), f"{result.id}:last"
        wait_until(lambda: "fields" in states_of(log).get(key, {}), 20)
        kill_tree(worker)
        ended = finish_job(worker, str(result.id))
        assert ended.states[key]["status"] == "completed"
        assert ended.state["status"] == "completed"


def test_a_workflow_ends_though_its_worker_died_after_the_last_member_had(
    servers: Fleet, tmp_path: Path
) -> None:
    with servers.worker("prefork", tmp_path) as worker, submitting(worker) as send:
        task = tasks_of(worker)
        sent = send(group(task("sleep", 1.0), task("add", 1, 2)))
        log = worker.log(sent.topic)
        wait_until(lambda: states_of(log)[sent.id]["status"] == "running", 20)
        # Its processes go on, and the one that would notice the end does not.
        worker.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: completed(log) == 2)
        assert states_of(log)[sent.id]["status"] == "running"
        began = time.monotonic()
        kill_tree(worker)
        wait_until(lambda: states_of(log)[sent.id]["status"] == "completed")
        assert time.monotonic() - began < BOUND_SECONDS
        assert log.types.count("job_completed") == 3


def test_a_child_that_outlives_its_worker_completes_its_job(servers: Fleet, tmp_path: Path) -> None:
    with servers.worker("prefork", tmp_path) as worker:
        job_id = worker.send("outlive_parent", LEASE_SECONDS + 2)
        log = worker.log(f"job:{job_id}")
        wait_until(lambda: log.events and "fields" in log.state)
        children = children_of(worker.process.pid)
        os.kill(worker.process.pid, signal.SIGKILL)
        try:
            worker.wait_for(job_id, "completed")
            assert "job_lost" not in log.types
        finally:
            # Nobody is left to end them.
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_process_that_ends_well_leaves_nothing_to_look_for(
    broker: str, place: Place, tmp_path: Path
) -> None:
    with (
        fleet(broker, place, servers=0) as alone,
        alone.worker("prefork", tmp_path, TEST_TASKS_PER_CHILD="1") as worker,
    ):
        for _ in range(3):
            worker.wait_for(worker.send("add", 1, 2), "completed")
        # The processes are recycled at once.
        time.sleep(LEASE_SECONDS)
        backend = load_backend(worker.settings)
        assert list(backend.overdue(1)) == []
        backend.close_writer()


def test_the_end_that_a_recycled_process_left_to_its_worker_comes_before_the_verdict(
    broker: str, server: RedisServer, tmp_path: Path
) -> None:
    # From the backend's return on a busy worker needs a part of the lease.
    lease = 3 * LEASE_SECONDS
    place = Place("redis", server.url)
    with (
        fleet(broker, place, servers=1, lease_seconds=lease, timeout_seconds=1.0) as own,
        own.worker(
            "prefork",
            tmp_path,
            TEST_TASKS_PER_CHILD="1",
            SEMANTIK_REALTIME_TIMEOUT_SECONDS="1",
        ) as worker,
    ):
        job_id = worker.send("sleep", 2)
        log = worker.wait_for(job_id, "running")
        server.pause()
        pids = children_of(worker.process.pid)
        # The process ends, and another takes its place; its lease is long over.
        wait_until(lambda: not set(pids) <= set(children_of(worker.process.pid)), 30)
        time.sleep(lease + 1)
        server.resume()
        worker.wait_for(job_id, "completed")
        assert "job_lost" not in log.types
