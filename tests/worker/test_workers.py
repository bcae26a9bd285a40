"""Real workers in processes of their own, on a real server: the events of each case.

The application does not install the tracker: Celery loads the entry point.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from celery_workers import POOLS, Place, Worker, running
from topic_log import Log, wait_until

from semantik_realtime.testing.servers import ROWS, RedisServer, Server, valkey_program
from semantik_realtime.testing.servers import running as serving


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module")
def prefork(
    broker: str, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    with running(broker, place, "prefork", tmp_path_factory.mktemp("worker")) as worker:
        yield worker
        assert "receiver failed" not in worker.output


@pytest.mark.every_backend(shares_storage=True)
def test_a_task_that_succeeds_completes_its_job(worker: Worker) -> None:
    job_id = worker.send("add", 1, 2)
    log = worker.wait_for(job_id, "completed")
    assert log.types == ["job_started", "job_completed"]
    assert log.owner == "7"
    assert log.state["name"] == "mirrored_app.add"
    assert log.state["started_at"] <= log.state["ended_at"]
    assert "3" not in str(log.last.get("data"))


def test_a_task_that_fails_sends_type_and_message_of_the_error_and_no_more(worker: Worker) -> None:
    job_id = worker.send("fail", "topsecret")
    log = worker.wait_for(job_id, "failed")
    assert log.types == ["job_started", "job_failed"]
    assert log.state["error"] == {"type": "ValueError", "message": "the file is empty"}
    assert "topsecret" not in str(log.events)
    assert "Traceback" not in str(log.events)


def test_an_exception_that_cannot_be_pickled_keeps_its_name(worker: Worker) -> None:
    log = worker.wait_for(worker.send("fail_unpicklably"), "failed")
    assert log.state["error"]["type"] == "Unpicklable"
    assert "unpicklable 1 2" in log.state["error"]["message"]


@pytest.mark.every_backend(shares_storage=True)
def test_a_retry_is_a_new_attempt_of_the_same_job(worker: Worker) -> None:
    job_id = worker.send("retry", 2)
    log = worker.wait_for(job_id, "completed")
    assert [pair for pair in log.statuses if pair[1] != "retrying"] == [
        (1, "running"),
        (2, "running"),
        (3, "running"),
        (3, "completed"),
    ]
    for event in log.events:
        if event["type"] == "job_retrying":
            assert event["state"]["error"] == {"type": "ValueError", "message": "not yet"}
    assert log.state["fields"] == {"seen": 2}
    assert "error" not in log.state
    assert log.owner == "7"
    feed = [event for event in worker.log("user:7").events if event["key"] == job_id]
    assert feed[-1]["type"] == "job_completed"


def test_update_state_is_mirrored_and_works_as_before(worker: Worker) -> None:
    job_id = worker.send("report", 30)
    assert worker.app.AsyncResult(job_id).get(timeout=20) == 30
    log = worker.wait_for(job_id, "completed")
    assert log.state["progress"] == {"current": 30, "total": 30}
    assert log.state["message"] == "file 30"


@pytest.mark.every_backend(shares_storage=True)
def test_a_task_reports_progress_events_and_fields(worker: Worker) -> None:
    log = worker.wait_for(worker.send("use_job"), "completed")
    files = [e["data"]["file"] for e in log.events if e["type"] == "file_completed"]
    assert files == ["a.txt", "b.txt", "c.txt"]
    assert log.state["progress"] == {"current": 3, "total": 3, "unit": "files"}
    assert log.state["fields"] == {"failed_files": 0}
    shown = [e["state"]["progress"]["current"] for e in log.events if "progress" in e["state"]]
    assert shown == sorted(shown)


@pytest.mark.every_backend(shares_storage=True)
def test_no_event_is_lost_doubled_or_out_of_order(worker: Worker) -> None:
    ids = [worker.send("emit_many", 300) for _ in range(6)]
    for job_id in ids:
        log = worker.wait_for(job_id, "completed")
        numbers = [e["data"]["number"] for e in log.events if e["type"] == "note"]
        assert numbers == list(range(300))
        assert [e["offset"] for e in log.events] == list(range(1, len(log.events) + 1))


@pytest.mark.parametrize("text", ["", "Replaced by a newer import"])
def test_an_ignored_task_completes_as_ignored(worker: Worker, text: str) -> None:
    log = worker.wait_for(worker.send("ignore", text), "completed")
    assert log.last["data"] == {"ignored": True}


def test_a_failure_that_a_task_declares_before_ignore_fails_the_job(worker: Worker) -> None:
    log = worker.wait_for(worker.send("declare_failure"), "failed")
    assert log.state["error"] == {"type": "ValueError", "message": "no such collection"}


def test_a_rejected_task_fails_its_job(worker: Worker) -> None:
    log = worker.wait_for(worker.send("reject"), "failed")
    assert log.types == ["job_started", "job_failed"]
    assert log.state["error"] == {"type": "Reject", "message": "not for me"}


@pytest.mark.every_backend(shares_storage=True)
def test_a_requeued_task_is_a_second_attempt(worker: Worker) -> None:
    log = worker.wait_for(worker.send("reject_once"), "completed")
    assert log.statuses[-1] == (2, "completed")


def assert_continued(log: Log) -> None:
    """Check that attempt 2 took over from attempt 1 and completed.

    Another process may claim attempt 2 before the start of attempt 1 is
    appended, which the fence then drops.
    """
    *earlier, started, ended = log.statuses
    assert (started, ended) == ((2, "running"), (2, "completed"))
    assert earlier in ([], [(1, "running")])


@pytest.mark.every_backend(shares_storage=True)
def test_a_replaced_task_continues_the_same_job(worker: Worker) -> None:
    log = worker.wait_for(worker.send("replace"), "completed")
    assert_continued(log)
    assert log.owner == "7"
    assert log.last["terminal"] is True
    assert sum(event.get("terminal", False) for event in log.events) == 1


def test_a_task_that_retries_automatically_is_a_new_attempt_each_time(worker: Worker) -> None:
    log = worker.wait_for(worker.send("retry_automatically"), "completed")
    assert [pair for pair in log.statuses if pair[1] != "retrying"][-2:] == [
        (3, "running"),
        (3, "completed"),
    ]
    assert log.types.count("job_completed") == 1


def test_an_attempt_that_ends_after_it_published_the_next_one_does_not_end_its_job(
    worker: Worker,
) -> None:
    ways = ("unraised", "swallowed", "failed")
    for job_id in [worker.send("retry_and_go_on", how) for how in ways]:
        log = worker.log(f"job:{job_id}")
        wait_until(lambda log=log: log.events and log.statuses[-1] == (2, "completed"), 20)
        assert [type for type in log.types if type != "job_queued"] == [
            "job_started",
            "job_retrying",
            "job_started",
            "job_completed",
        ]


def test_a_task_replaced_by_a_chord_ends_with_its_body(worker: Worker) -> None:
    log = worker.wait_for(worker.send("replace_by_chord"), "completed", 40)
    assert_continued(log)
    assert log.owner == "7"


def test_a_task_that_the_worker_does_not_know_fails_its_job(worker: Worker) -> None:
    log = worker.wait_for(worker.send("no_such_task"), "failed")
    assert log.state["error"]["type"] == "NotRegistered"
    assert log.owner == "7"


def test_a_task_replaced_by_a_chain_ends_with_its_last_task(worker: Worker) -> None:
    log = worker.wait_for(worker.send("replace_by_chain"), "completed")
    assert_continued(log)


@pytest.mark.every_backend(shares_storage=True)
@pytest.mark.parametrize("worker", [pool for pool in POOLS if pool != "solo"], indirect=True)
def test_a_task_that_exits_fails_its_job(worker: Worker) -> None:
    assert_exited(worker.wait_for(worker.send("exit_process", "exit"), "failed"))


def test_a_task_that_exits_ends_a_solo_worker_and_fails_its_job(
    broker: str, place: Place, tmp_path: Path
) -> None:
    with running(broker, place, "solo", tmp_path) as worker:
        job_id = worker.send("exit_process", "exit")
        worker.process.wait(30)
        assert_exited(worker.wait_for(job_id, "failed"))


def assert_exited(log: Log) -> None:
    assert log.state["fields"] == {"done": 3}
    assert log.state["progress"]["current"] == 3
    assert sum(event["type"] == "job_failed" for event in log.events) == 1


def test_a_task_can_read_its_jobs_id_and_attempt(worker: Worker) -> None:
    job_id = worker.send("describe")
    result = worker.app.AsyncResult(job_id).get(timeout=20)
    assert result == {"id": job_id, "attempt": 1}


@pytest.mark.every_backend(shares_storage=True)
def test_a_task_published_by_a_worker_is_queued_first(worker: Worker) -> None:
    job_id = worker.send("spawn")
    worker.wait_for(job_id, "completed")
    inner = worker.app.AsyncResult(job_id).get(timeout=20)
    # No worker consumes its queue.
    log = worker.wait_for(inner, "queued")
    assert log.state["attempt"] == 0
    assert log.state["name"] == "mirrored_app.add"
    assert log.state["queued_at"] <= log.last["time"]


def test_a_task_without_an_owner_has_no_feed(worker: Worker) -> None:
    log = worker.wait_for(worker.send("add", 1, 2, owner=None), "completed")
    assert log.owner is None


def test_a_worker_logs_once_for_each_task_that_its_jobs_have_no_owner(worker: Worker) -> None:
    for _ in range(2):
        worker.wait_for(worker.send("add", 1, 2, owner=None), "completed")
    worker.wait_for(worker.send("describe", owner=None), "completed")
    lines = [line for line in worker.output.splitlines() if "job without owner" in line]
    assert sum("task=mirrored_app.add," in line for line in lines) == 1
    assert sum("task=mirrored_app.describe," in line for line in lines) == 1
    assert all("header realtime_owner" in line for line in lines)


def test_a_task_that_no_worker_knows_fails_its_job(worker: Worker) -> None:
    log = worker.wait_for(worker.send("unregistered"), "failed")
    assert log.state["error"]["type"] == "NotRegistered"


@pytest.mark.every_backend(shares_storage=True)
def test_a_task_revoked_while_it_is_queued_cancels_its_job(worker: Worker) -> None:
    job_id = str(uuid.uuid4())
    worker.app.control.revoke(job_id, reply=True, timeout=5, destination=[f"{worker.queue}@here"])
    worker.send("add", 1, 2, task_id=job_id)
    log = worker.wait_for(job_id, "cancelled")
    assert log.last["data"] == {"how": "revoked"}
    assert log.state["attempt"] == 0
    assert log.owner == "7"


def test_an_expired_task_cancels_its_job(worker: Worker) -> None:
    job_id = worker.send("add", 1, 2, expires="2020-01-01T00:00:00+00:00")
    log = worker.wait_for(job_id, "cancelled")
    assert log.last["data"] == {"how": "expired"}


def feed_of(worker: Worker, job_id: str) -> list[str]:
    return [e["type"] for e in worker.log("user:7").events if e["key"] == job_id]


@pytest.mark.every_backend(shares_storage=True)
@pytest.mark.parametrize("how", ["_exit", "kill"])
def test_a_killed_process_fails_its_job_and_the_last_progress_and_fields_stay(
    prefork: Worker, how: str
) -> None:
    job_id = prefork.send("exit_process", how)
    log = prefork.wait_for(job_id, "failed")
    assert log.state["error"]["type"] == "WorkerLostError"
    assert log.state["attempt"] == 1
    assert log.state["progress"]["current"] == 3
    assert log.state["fields"] == {"done": 3}
    assert "started_at" in log.state
    assert log.types.count("job_failed") == 1
    wait_until(lambda: feed_of(prefork, job_id)[-1:] == ["job_failed"])


@pytest.mark.every_backend(shares_storage=True)
def test_a_task_that_runs_again_because_its_process_died_is_one_job(prefork: Worker) -> None:
    log = prefork.wait_for(prefork.send("exit_process_once"), "completed")
    # The first job_started may be lost with the process that would have sent it.
    number = log.statuses[-1][0]
    assert number == (2 if log.types.count("job_started") > 1 else 1)
    assert log.statuses[-2:] == [(number, "running"), (number, "completed")]


def test_a_soft_time_limit_fails_the_job_even_during_an_emit(prefork: Worker) -> None:
    log = prefork.wait_for(prefork.send("overrun_softly"), "failed")
    assert log.state["error"]["type"] == "SoftTimeLimitExceeded"


@pytest.mark.every_backend(shares_storage=True)
def test_a_hard_time_limit_fails_the_job_once(prefork: Worker) -> None:
    job_id = prefork.send("overrun")
    log = prefork.wait_for(job_id, "failed")
    assert log.state["error"]["type"] == "TimeLimitExceeded"
    assert log.state["progress"]["current"] == 5
    # The same child runs the next task, after Celery's second signal for the limit.
    wait_until(lambda: feed_of(prefork, job_id)[-1:] == ["job_failed"])
    prefork.wait_for(prefork.send("add", 1, 2), "completed")
    assert log.types.count("job_failed") == 1
    assert feed_of(prefork, job_id).count("job_failed") == 1


@pytest.mark.every_backend(shares_storage=True)
def test_a_terminated_task_cancels_its_job(prefork: Worker) -> None:
    job_id = prefork.send("wait")
    log = prefork.log(f"job:{job_id}")
    wait_until(lambda: log.events and "fields" in log.state)
    prefork.app.control.revoke(job_id, terminate=True, destination=[f"{prefork.queue}@here"])
    log = prefork.wait_for(job_id, "cancelled")
    assert log.last["data"] == {"how": "terminated"}
    assert log.state["attempt"] == 1
    assert log.state["fields"] == {"waiting": True}
    assert log.owner == "7"
    wait_until(lambda: feed_of(prefork, job_id)[-1:] == ["job_cancelled"])


@pytest.mark.every_backend(shares_storage=True)
def test_a_spawned_process_is_mirrored_too(broker: str, place: Place, tmp_path: Path) -> None:
    with running(broker, place, "prefork", tmp_path, TEST_START_METHOD="spawn") as worker:
        log = worker.wait_for(worker.send("use_job"), "completed")
        assert log.types.count("file_completed") == 3


def test_the_mirror_can_be_turned_off(broker: str, place: Place, tmp_path: Path) -> None:
    with running(broker, place, "threads", tmp_path, SEMANTIK_REALTIME_MIRROR="0") as worker:
        job_id = worker.send("add", 1, 2)
        assert worker.app.AsyncResult(job_id).get(timeout=20) == 3
        assert worker.log(f"job:{job_id}").events == []


@pytest.mark.parametrize(
    "environment",
    [
        {"SEMANTIK_REALTIME_BACKEND": "nowhere"},
        {"SEMANTIK_REALTIME_PROGRESS_SECONDS": "soon"},
    ],
)
def test_a_wrong_setting_turns_the_mirror_off_is_logged_once_and_tasks_run(
    broker: str, place: Place, tmp_path: Path, environment: dict[str, str]
) -> None:
    with running(broker, place, "threads", tmp_path, **environment) as worker:
        for _ in range(2):
            job_id = worker.send("add", 1, 2)
            assert worker.app.AsyncResult(job_id).get(timeout=20) == 3
        assert worker.output.count("no task is mirrored") == 1


def test_tasks_run_while_the_backend_is_away(broker: str, tmp_path: Path) -> None:
    away = Place("redis", "redis://127.0.0.1:1/0")
    with running(broker, away, "prefork", tmp_path) as worker:
        begun = time.monotonic()
        for _ in range(10):
            job_id = worker.send("emit_many", 5)
            worker.app.AsyncResult(job_id).get(timeout=20)
        assert time.monotonic() - begun < 10
        assert "backend fails" in worker.output


def test_the_backends_warnings_are_logged_once_as_soon_as_it_answers(
    broker: str, tmp_path: Path
) -> None:
    options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    server = RedisServer(valkey_program(), options=options)
    with running(broker, Place("redis", server.url), "prefork", tmp_path) as worker:
        job_id = worker.send("add", 1, 2)
        assert worker.app.AsyncResult(job_id).get(timeout=20) == 3
        assert "backend: " not in worker.output
        with serving(server):
            wait_until(lambda: "set appendonly yes" in worker.output, 20)
            worker.wait_for(job_id, "completed")
        assert worker.output.count("backend: maxmemory-policy is allkeys-lru") == 1
        assert worker.output.count("set appendonly yes") == 1
        assert "warnings of the backend not read" not in worker.output


@pytest.mark.every_backend
def test_events_emitted_during_an_outage_arrive_afterwards(
    broker: str, row: str, server: Server, tmp_path: Path
) -> None:
    place = Place(ROWS[row].backend, server.url)
    with running(broker, place, "prefork", tmp_path) as worker:
        worker.wait_for(worker.send("add", 1, 2), "completed")
        server.kill()
        job_ids = [worker.send("emit_many", 50) for _ in range(4)]
        for job_id in job_ids:
            worker.app.AsyncResult(job_id).get(timeout=20)
        server.start()
        for job_id in job_ids:
            log = worker.wait_for(job_id, "completed")
            numbers = [e["data"]["number"] for e in log.events if e["type"] == "note"]
            assert numbers == list(range(50))
            assert log.owner == "7"


@pytest.mark.every_backend
def test_a_hanging_backend_costs_a_task_no_more_than_the_deadlines(
    broker: str, row: str, server: Server, tmp_path: Path
) -> None:
    place = Place(ROWS[row].backend, server.url)
    environment = {
        "SEMANTIK_REALTIME_TIMEOUT_SECONDS": "1",
        "SEMANTIK_REALTIME_FLUSH_SECONDS": "0.5",
    }
    with running(broker, place, "prefork", tmp_path, **environment) as worker:
        worker.wait_for(worker.send("add", 1, 2), "completed")
        server.pause()
        begun = time.monotonic()
        job_ids = [worker.send("emit_many", 5) for _ in range(20)]
        for job_id in job_ids:
            worker.app.AsyncResult(job_id).get(timeout=20)
        seconds = time.monotonic() - begun
        server.resume()
        # A failed claim and a failed end for each of the two processes, twice at most. If every
        # task waited, it would take fifteen seconds.
        assert seconds < 2 * (1 + 0.5) + 5
        for job_id in job_ids:
            worker.wait_for(job_id, "completed")


# Outages of the row's server. Celery's broker is another server.


def run_short_tasks(worker: Worker, count: int) -> tuple[list[str], list[float]]:
    """Run tasks one after another; return their ids, and how many seconds each took."""
    job_ids, seconds = [], []
    for _ in range(count):
        begun = time.monotonic()
        job_ids.append(worker.send("emit_many", 3))
        worker.app.AsyncResult(job_ids[-1]).get(timeout=60)
        seconds.append(time.monotonic() - begun)
    return job_ids, seconds


def check_sent_once(worker: Worker, job_ids: list[str]) -> None:
    for job_id in job_ids:
        log = worker.wait_for(job_id, "completed", 30)
        assert [e["data"]["number"] for e in log.events if e["type"] == "note"] == [0, 1, 2]
        assert log.types.count("job_started") == log.types.count("job_completed") == 1
        wait_until(lambda job_id=job_id: feed_of(worker, job_id)[-1:] == ["job_completed"])
        assert feed_of(worker, job_id).count("job_completed") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_tasks_run_as_fast_without_the_backend_and_every_end_arrives_once(
    broker: str, server: Server, tmp_path: Path, pool: str
) -> None:
    server.kill()
    environment = {"SEMANTIK_REALTIME_TIMEOUT_SECONDS": "2"}
    with running(broker, Place("redis", server.url), pool, tmp_path, **environment) as worker:
        # Away from the start: the processes of the pool do not know that yet.
        early, _ = run_short_tasks(worker, 5)
        away, away_seconds = run_short_tasks(worker, 20)
        server.start()
        check_sent_once(worker, [*early, *away])
        normal, normal_seconds = run_short_tasks(worker, 20)
        # Then the server hangs, without an error.
        known = worker.output.count("backend fails")
        server.pause()
        run_short_tasks(worker, 5)
        wait_until(lambda: worker.output.count("backend fails") > known, 20)
        hanging, hanging_seconds = run_short_tasks(worker, 20)
        server.resume()
        check_sent_once(worker, [*normal, *hanging])
        for seconds in (away_seconds, hanging_seconds):
            # A task takes about 0.01 s. If each made its process wait for 0.2 s, half of them
            # would wait for a process. A few may be slow for other reasons.
            assert sorted(seconds)[13] < median(normal_seconds) + 0.1
            # One task in each of the two processes may wait until the outage is known there.
            assert sum(one > 1 for one in seconds) <= 2


def test_a_process_killed_in_an_outage_fails_its_job_and_no_later_event_reopens_it(
    broker: str, server: Server, tmp_path: Path
) -> None:
    environment = {"SEMANTIK_REALTIME_SPOOL_DIRECTORY": str(tmp_path / "spool")}
    with running(broker, Place("redis", server.url), "prefork", tmp_path, **environment) as worker:
        worker.wait_for(worker.send("add", 1, 2), "completed")
        server.kill()
        job_id = worker.send("exit_in_outage")
        wait_until(lambda: "WorkerLostError" in worker.output, 20)
        server.start()
        log = worker.wait_for(job_id, "failed")
        assert log.state["error"]["type"] == "WorkerLostError"
        directory = tmp_path / "spool" / worker.queue
        wait_until(lambda: not list(directory.iterdir()), 20)
        # The events of the dead process were sent; those after the end were refused.
        assert log.state["status"] == "failed"
        assert log.types.count("job_failed") == 1


def test_the_events_of_a_worker_killed_in_an_outage_are_sent_by_the_next_one(
    broker: str, server: Server, tmp_path: Path
) -> None:
    environment = {"SEMANTIK_REALTIME_SPOOL_DIRECTORY": str(tmp_path / "spool")}
    place = Place("redis", server.url)
    queue = f"q{uuid.uuid4().hex[:8]}"
    (tmp_path / "next").mkdir()
    server.kill()
    first = Worker(broker, place, "solo", tmp_path, queue, **environment)
    try:
        job_ids, _ = run_short_tasks(first, 3)
        # The ends must be on disk, those for the tasks' topics and those for the feed.
        directory = tmp_path / "spool" / queue
        wait_until(lambda: count_ends(directory) == 6, 20)
    finally:
        first.process.kill()
        first.process.wait()
    server.start()
    following = Worker(broker, place, "solo", tmp_path / "next", queue, **environment)
    try:
        check_sent_once(following, job_ids)
    finally:
        following.stop()


def count_ends(directory: Path) -> int:
    """How many ends are in the files of a spool directory."""
    with contextlib.suppress(FileNotFoundError):
        texts = [path.read_bytes() for path in directory.iterdir()]
        return sum(text.count(b'"terminal":true') for text in texts)
    return 0


def test_a_job_of_celerys_first_protocol_is_queued_and_has_its_owner(
    broker: str, place: Place, tmp_path: Path
) -> None:
    with running(broker, place, "threads", tmp_path, TEST_PROTOCOL="1") as worker:
        job_id = worker.send("spawn_first")
        inner = worker.wait_for(job_id, "completed")
        [spawned] = [e["data"]["id"] for e in inner.events if e["type"] == "spawned"]
        log = worker.wait_for(spawned, "completed")
        assert log.types == ["job_queued", "job_started", "job_completed"]
        assert log.owner == "auth0|5f7c"
        assert log.state["queued_at"]
        assert "receiver failed" not in worker.output
