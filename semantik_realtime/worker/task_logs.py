"""A task's log records, as events ``log`` of its job."""

from __future__ import annotations

import logging
import time
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from semantik_realtime.core.allowance import Budget
from semantik_realtime.core.limits import LOG_BURST, LOG_PER_SECOND, MAX_LOG_CHARACTERS
from semantik_realtime.native_threads import make_rlock
from semantik_realtime.worker.current import current_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.values import clean_text, describe_error, note_misuse

TASK_LOGGER = "celery.task"
"""The parent of the loggers of Celery's ``get_task_logger``. A worker does not let it propagate."""
FRAMEWORKS = frozenset({"semantik_realtime", "celery", "kombu", "billiard", "amqp", "redis"})
"""First words of the names of loggers that are not the application's. Celery logs results and
arguments, and in ``celery.redirected`` what is printed, which may be a progress bar's lines."""


class JobLog:
    """The log events of one job: at most `LOG_BURST` at once, and `LOG_PER_SECOND` a second.

    Any thread may call it. It never waits: a record without room is left out, and
    the next one, or the job's end, tells how many were.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._budget = Budget(LOG_BURST, LOG_PER_SECOND, time.monotonic())
        self._lock = make_rlock()

    def add(self, record: logging.LogRecord) -> None:
        """Send a record: level, logger, text, and type and message of its exception."""
        with self._lock:
            if not self._budget.admit(time.monotonic()):
                return
            dropped = self._budget.take_refused()
        data: dict[str, Any] = {
            "level": record.levelname.lower()[:20],
            "logger": clean_text(record.name)[:200],
            "text": clean_text(record.getMessage()[:MAX_LOG_CHARACTERS]),
        }
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None:
            data["exception"] = describe_error(error)
        if dropped:
            data["dropped"] = dropped
        self._job.send_log(data)

    def finish(self) -> None:
        """Send how many records were left out, if no record has told it yet."""
        with self._lock:
            dropped = self._budget.take_refused()
        if dropped:
            text = f"{dropped} log records were left out"
            data = {"level": "warning", "logger": __name__, "text": text, "dropped": dropped}
            self._job.send_log(data)


class JobLogHandler(logging.Handler):
    """Passes the records of a task to its job, from the job's level on."""

    def createLock(self) -> None:  # noqa: N802 - logging's name
        # None is needed, and a thread that holds one could wait for the emitter's, and it for us.
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        job = current_job()
        if job is None or job.has_ended:
            return False
        level = job.mirrors.log_level
        if level is None or record.levelno < level or _is_frameworks(record.name):
            return False
        try:
            log_of(job).add(record)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            # Whatever an argument raises when it is formatted, the task goes on.
            note_misuse("log record cannot be formatted", job.id, f"{record.name}: {error!r}")
        return True


def log_of(job: Job) -> JobLog:
    """Return the job's log, made at its first record."""
    if job.log is None:
        job.log = JobLog(job)
    return job.log


_handler = JobLogHandler()


def capture_logs() -> None:
    """Attach the handler to the root logger, and to `TASK_LOGGER` if it does not propagate.

    Idempotent. Call it before each task: an application may configure logging anew.
    """
    root, tasks = logging.getLogger(), logging.getLogger(TASK_LOGGER)
    if _handler not in root.handlers:
        root.addHandler(_handler)
    if tasks.propagate == (_handler in tasks.handlers):
        # Attached to both, it would get each record twice.
        (tasks.removeHandler if tasks.propagate else tasks.addHandler)(_handler)


def release_logs() -> None:
    """Undo `capture_logs`."""
    for name in (None, TASK_LOGGER):
        logging.getLogger(name).removeHandler(_handler)


def _is_frameworks(name: str) -> bool:
    if name == TASK_LOGGER or name.startswith(TASK_LOGGER + "."):
        return False
    return name.partition(".")[0] in FRAMEWORKS
