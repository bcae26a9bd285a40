"""Log records of a task as events of its job."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery.utils.log import get_task_logger
from topic_log import Log

from semantik_realtime import job
from semantik_realtime.core.limits import LOG_BURST, MAX_LOG_CHARACTERS
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import tracker as tracker_module
from semantik_realtime.worker.current import pop_job, push_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.mirrors import Mirrors
from semantik_realtime.worker.task_logs import capture_logs, release_logs
from semantik_realtime.worker.tracker import install
from semantik_realtime.worker.values import misuse

Look = Callable[[str], Log]

app = Celery("logs_app", broker="memory://", backend="cache+memory://", set_as_current=False)
logger = logging.getLogger("reports.pdf")
task_logger = get_task_logger("reports.tasks")


@app.task(realtime={"logs": "WARNING"})
def warn() -> None:
    logger.warning("the font %r is missing", "Arial")


@app.task
def warn_by_settings() -> None:
    logger.warning("the font %r is missing", "Arial")


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    level, propagate = logging.getLogger().level, logging.getLogger("celery.task").propagate
    logging.getLogger().setLevel(logging.DEBUG)
    yield
    release_logs()
    logging.getLogger().setLevel(level)
    logging.getLogger("celery.task").propagate = propagate


@pytest.fixture
def running(runtime: Runtime) -> Iterator[Job]:
    running = Job(runtime, JobMeta("1", owner="7"), 1)
    running.mirrors = Mirrors(log_level=logging.INFO)
    running.begin()
    push_job(running)
    capture_logs()
    yield running
    pop_job(running)


def records(log: Look, topic: str = "job:1") -> list[dict[str, Any]]:
    return [event["data"] for event in log(topic).events if event["type"] == "log"]


def test_a_record_is_an_event_without_a_state_on_the_jobs_topic_alone(
    running: Job, log: Look
) -> None:
    running.progress(1, 2)
    logger.info("read %d of %d", 1, 2)
    expected = {"level": "info", "logger": "reports.pdf", "text": "read 1 of 2"}
    assert records(log) == [expected]
    [event] = [event for event in log("job:1").events if event["type"] == "log"]
    assert (event["key"], "state" in event) == ("1", False)
    assert records(log, "user:7") == []


def test_records_below_the_level_and_of_frameworks_are_not_sent(running: Job, log: Look) -> None:
    logger.debug("secret")
    for name in ("celery.app.trace", "celery.redirected", "kombu", "semantik_realtime.emitter"):
        logging.getLogger(name).warning("Task succeeded in 1s: 'secret'")
    task_logger.info("the task's own")
    logging.getLogger("celery.task").info("another of the task's own")
    assert [one["text"] for one in records(log)] == [
        "the task's own",
        "another of the task's own",
    ]


def test_a_task_logger_that_does_not_propagate_sends_each_record_once(
    running: Job, log: Look
) -> None:
    logging.getLogger("celery.task").propagate = False
    capture_logs()
    task_logger.info("one")
    logging.getLogger("celery.task").propagate = True
    capture_logs()
    task_logger.info("two")
    assert [one["text"] for one in records(log)] == ["one", "two"]


def test_an_exception_is_its_type_and_message(running: Job, log: Look) -> None:
    try:
        raise ValueError("no such page")
    except ValueError:
        logger.exception("page skipped")
    [record] = records(log)
    assert record["exception"] == {"type": "ValueError", "message": "no such page"}
    assert "Traceback" not in str(record)


def test_long_records_are_cut(running: Job, log: Look) -> None:
    logger.info("x" * 100_000)
    assert len(records(log)[0]["text"]) == MAX_LOG_CHARACTERS


def test_a_flood_is_bounded_and_counted(running: Job, log: Look) -> None:
    for number in range(LOG_BURST * 20):
        logger.info("record %d", number)
    running.end("job_completed")
    sent = records(log)
    assert LOG_BURST <= len(sent) < LOG_BURST * 4
    shown = [one for one in sent if one["text"].startswith("record")]
    assert len(shown) + sum(one.get("dropped", 0) for one in sent) == LOG_BURST * 20
    assert sent[-1]["text"].endswith("log records were left out")
    assert log("job:1").types[-1] == "job_completed"


def test_only_threads_that_have_the_job_log_for_it(running: Job, log: Look) -> None:
    for target in (lambda: logger.info("without"), job.wrap(lambda: logger.info("with"))):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert [one["text"] for one in records(log)] == ["with"]


def test_a_record_that_cannot_be_formatted_harms_nobody(running: Job, log: Look) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no")

    logging.raiseExceptions = False
    try:
        logger.info("%s", Bad())
        logger.info("%d", "x")
    finally:
        logging.raiseExceptions = True
    assert misuse["log record cannot be formatted"] == 2
    logger.info("after")
    assert [one["text"] for one in records(log)] == ["after"]


def test_a_time_limit_while_a_record_is_formatted_is_the_tasks(running: Job) -> None:
    class Late:
        def __str__(self) -> str:
            raise SoftTimeLimitExceeded

    with pytest.raises(SoftTimeLimitExceeded):
        logger.info("%s", Late())


def test_a_record_that_logs_again_ends(running: Job, log: Look) -> None:
    class Chatty:
        def __str__(self) -> str:
            logger.info("inner")
            return "outer"

    logger.info("%s", Chatty())
    assert "outer" in [one["text"] for one in records(log)]


def test_a_job_without_the_mirror_and_no_job_send_nothing(running: Job, log: Look) -> None:
    running.mirrors = Mirrors()
    logger.error("secret")
    pop_job(running)
    logger.error("secret")
    assert records(log) == []


@pytest.mark.parametrize(
    ("setting", "task", "count"),
    [("off", warn, 1), ("off", warn_by_settings, 0), ("WARNING", warn_by_settings, 1)],
)
def test_option_and_setting_turn_it_on(
    settings: Any,
    backend: Any,
    reader: Any,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    task: Any,
    count: int,
) -> None:
    previous = tracker_module._tracker
    if previous is not None:
        previous.disconnect()
    monkeypatch.setattr(tracker_module, "_tracker", None)
    runtime = Runtime(settings.model_copy(update={"mirror_logs": setting}), backend=backend)
    tracker = install(runtime=runtime)
    job_id = str(uuid.uuid4())
    task.apply(task_id=job_id)
    assert runtime.emitter.flush(5)
    events = Log(reader, f"job:{job_id}").events
    sent = [event["data"]["text"] for event in events if event["type"] == "log"]
    assert sent == ["the font 'Arial' is missing"] * count
    assert not tracker.failures
    tracker.disconnect()
    runtime.close()
    if previous is not None:
        previous.connect()
