"""The mirrors in real workers, and the jobs that a real beat starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery_workers import HERE, Place, Worker, running
from topic_log import wait_until


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module", params=["prefork", "threads"])
def worker(
    request: pytest.FixtureRequest,
    broker: str,
    place: Place,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Worker]:
    with running(broker, place, request.param, tmp_path_factory.mktemp("worker")) as worker:
        yield worker
        assert "receiver failed" not in worker.output
        assert "step failed" not in worker.output


@pytest.mark.parametrize(
    ("meta", "progress"),
    [
        ({"current": 3, "total": 12}, {"current": 3, "total": 12}),
        ({"progress": 25}, {"current": 25, "total": 100, "unit": "%"}),
        ({"percent": "25"}, {"current": 25, "total": 100, "unit": "%"}),
    ],
)
def test_a_thread_of_a_task_updates_the_job_by_its_id(
    worker: Worker, meta: dict[str, Any], progress: dict[str, Any]
) -> None:
    log = worker.wait_for(worker.send("report_in_thread", meta), "completed")
    assert log.state["progress"] == progress


def test_log_records_of_a_task_are_events_of_its_job_alone(worker: Worker) -> None:
    job_id = worker.send("write_log", 3)
    events = wait_for_end(worker, job_id)
    records = [event["data"] for event in events if event["type"] == "log"]
    assert [(one["level"], one["logger"], one["text"]) for one in records] == [
        *(("warning", "app.pdf", f"page {number} has no text") for number in range(3)),
        ("error", "app.tasks", "giving up"),
    ], "no framework's record, nothing printed, each once"
    types = [event["type"] for event in events if event["type"] != "job_progress"]
    assert types == ["job_started", *["log"] * 4, "written", "job_completed"]
    feed = [event for event in worker.log("user:7").events if event["key"] == job_id]
    assert "log" not in {event["type"] for event in feed}
    assert "secret" not in str(events)
    # They are in the worker's own log, as before, and so is the result.
    wait_until(lambda: "secret result" in worker.output)
    assert "page 0 has no text" in worker.output


def test_a_flood_of_records_is_bounded_and_counted(worker: Worker) -> None:
    records = [
        event["data"]
        for event in wait_for_end(worker, worker.send("write_log", 3000))
        if event["type"] == "log"
    ]
    shown = [one for one in records if one["logger"].startswith("app.")]
    assert len(records) < 500
    assert len(shown) + sum(one.get("dropped", 0) for one in records) == 3001


def test_log_records_are_sent_only_if_somebody_asked_for_them(worker: Worker) -> None:
    events = wait_for_end(worker, worker.send("write_log_unasked"))
    assert [event["type"] for event in events] == ["job_started", "job_completed"]


def test_a_bar_of_tqdm_is_the_progress_or_inside_it(worker: Worker) -> None:
    log = worker.wait_for(worker.send("use_tqdm"), "completed")
    progress = [event["state"]["progress"] for event in log.events if "progress" in event["state"]]
    pages = [one["current"] for one in progress if one.get("unit") == "pages"]
    assert pages == sorted(pages)
    assert any(0 < current < 20 for current in pages), "while it runs"
    [read] = [event["state"] for event in log.events if event["type"] == "pages_read"]
    assert (read["progress"]["current"], read["progress"]["total"]) == (20, 20)
    [half] = [event["state"] for event in log.events if event["type"] == "half"]
    assert half["progress"]["inner"] == [{"current": 3, "total": 8, "message": "Words"}]
    assert log.state["progress"] == {"current": 1, "total": 1, "unit": "files"}
    # The terminal, here the worker's log, has its lines.
    assert "Pages:" in worker.output


def test_a_task_that_opts_out_runs_unseen(worker: Worker) -> None:
    sent = [worker.send("unseen"), worker.send("add", 1, 2, headers={"realtime": False})]
    assert worker.app.AsyncResult(sent[0]).get(timeout=20) is None
    assert worker.app.AsyncResult(sent[1]).get(timeout=20) == 3
    # What comes after them in the same processes is there.
    worker.wait_for(worker.send("add", 1, 2), "completed")
    assert [worker.log(f"job:{job_id}").events for job_id in sent] == [[], []]


def test_threads_of_a_task_report_to_its_job(worker: Worker) -> None:
    log = worker.wait_for(worker.send("use_threads"), "completed")
    numbers = [event["data"]["number"] for event in log.events if event["type"] == "read"]
    assert sorted(numbers) == list(range(20))
    assert log.state["progress"] == {"current": 20, "total": 20, "unit": "files"}


@pytest.mark.parametrize("worker", ["threads"], indirect=True)
def test_the_jobs_of_beat_have_the_owner_of_their_entry_or_of_the_setting(
    worker: Worker, tmp_path: Path
) -> None:
    own, default = (f"{name}-{uuid.uuid4().hex[:8]}" for name in ("own", "default"))
    environment = {
        **worker._environment,
        "PYTHONPATH": str(HERE),
        "TEST_BEAT_OWNER": own,
        "SEMANTIK_REALTIME_BEAT_OWNER": default,
    }
    command = ["-m", "celery", "-A", "mirrored_app", "beat", "-s", "schedule", "--pidfile="]
    with (tmp_path / "beat.log").open("wb") as output:
        beat = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for owner in (own, default):
            feed = worker.log(f"user:{owner}")
            try:
                wait_until(lambda feed=feed: "job_completed" in feed.types, 30)
            except AssertionError:
                raise AssertionError((tmp_path / "beat.log").read_text()) from None
            assert feed.owner == owner
            assert worker.log(f"job:{feed.events[0]['key']}").owner == owner
    finally:
        beat.send_signal(signal.SIGTERM)
        try:
            beat.wait(15)
        except subprocess.TimeoutExpired:
            beat.kill()
            beat.wait()


def wait_for_end(worker: Worker, job_id: str) -> list[dict[str, Any]]:
    """Return the events of a job that has completed. Those of its log have no state."""
    log = worker.log(f"job:{job_id}")
    wait_until(lambda: "job_completed" in log.types, 20)
    return log.events
