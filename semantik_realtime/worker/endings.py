"""How an attempt ended, where Celery sends no signal of its own for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from billiard.exceptions import TimeLimitExceeded
from billiard.process import current_process
from celery import Task
from celery.exceptions import Reject

from semantik_realtime.worker.cancelled import JobCancelled
from semantik_realtime.worker.values import describe_error, make_error

WORKER_STOPPED = make_error("WorkerStopped", "the worker was stopped before the task ended")


class Ending(NamedTuple):
    """What to pass to `semantik_realtime.worker.job.Job.end`."""

    type: str
    error: dict[str, str] | None = None
    data: Mapping[str, Any] | None = None


def ending_of(
    state: str | None,
    result: Any,
    raised: BaseException | None,
    declared: tuple[str, dict[str, str] | None] | None,
    is_awaited: bool,
) -> Ending | None:
    """Return how an attempt ended; None if it goes on, or if the main process sends the end.

    Args:
        state: what Celery passes to ``task_postrun``; None if a BaseException left the task.
        result: what the task returned or raised, as Celery passes it.
        raised: the exception that is being handled.
        declared: the end that the task set itself, with ``update_state("FAILURE")`` before it
            raised ``Ignore``.
        is_awaited: whether other members of a workflow run only after this one.
    """
    if state == "IGNORED" and isinstance(result, JobCancelled):
        return Ending("job_cancelled", data={"how": "stopped"})
    if state == "IGNORED":
        if declared is not None and not (is_awaited and declared[0] == "job_completed"):
            return Ending(*declared)
        if declared is None and _comes_from_replace(result):
            # The job goes on in another task with its id.
            return None
        if is_awaited:
            # Celery runs nothing that follows, and says nothing of it.
            return Ending("job_cancelled", data={"how": "ignored"})
        return Ending("job_completed", data={"ignored": True})
    if state == "REJECTED":
        if getattr(result, "requeue", False):
            return Ending("job_retrying", data={"rejected": True})
        return Ending("job_failed", describe_failure(result))
    if state == "SUCCESS" and isinstance(raised, Exception) and not isinstance(raised, Reject):
        # It has returned, but what follows it could not be published (its arguments are wrong):
        # Celery sends no success for it, and stores a failure.
        return Ending("job_failed", describe_error(raised))
    if state is not None:
        return None
    if _is_from(raised, "greenlet", "GreenletExit"):
        # So Celery terminates a task in a greenlet. Its signal for that comes after this one, and
        # in a cold stop there is none.
        if is_worker_stopping():
            return Ending("job_failed", WORKER_STOPPED)
        return Ending("job_cancelled", data={"how": "terminated"})
    if _is_from(raised, "gevent", "Timeout"):
        # Celery's hard time limit in the pool of gevent, or a timeout that the task did not catch.
        seconds = getattr(raised, "seconds", None)
        return Ending("job_failed", describe_error(TimeLimitExceeded(seconds)))
    if isinstance(raised, Exception) or not _is_process_ending(raised):
        return Ending("job_failed", describe_error(raised))
    return None


def _is_from(raised: BaseException | None, package: str, name: str) -> bool:
    """Return True if the class of ``raised``, or a base of it, is a class of that package."""
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == package
        for base in type(raised).__mro__
    )


def is_worker_stopping() -> bool:
    """Return True in a cold stop of the worker whose main process this is."""
    state = sys.modules.get("celery.worker.state")
    if getattr(state, "should_terminate", None) not in (None, False):
        return True
    # Set later than greenlets are ended, which Celery does in its handler of the signal.
    return bool(getattr(sys.modules.get("celery.utils.log"), "_in_sighandler", False))


def _comes_from_replace(ignored: object) -> bool:
    """Return True if Celery's own `Task.replace` raised this ``Ignore``.

    Not by its text, which a task may give to an ``Ignore`` of its own.
    """
    traceback = getattr(ignored, "__traceback__", None)
    while traceback is not None and traceback.tb_frame.f_code is not Task.replace.__code__:
        traceback = traceback.tb_next
    return traceback is not None


def _is_process_ending(raised: BaseException | None) -> bool:
    """Return True if this process of the pool is being ended, whose main process sends the end.

    False in the main process (threads, solo), and where the task itself called
    `sys.exit`: Celery 5.3 sends no signal for that, because it cannot encode a
    SystemExit as a result. billiard's signal handler exits with the signal's
    number minus 256; KeyboardInterrupt and the rest come from a stop as well.
    """
    if str(current_process().name) == "MainProcess":
        return False
    if not isinstance(raised, SystemExit):
        return True
    return isinstance(raised.code, int) and -256 < raised.code < -128


def describe_failure(raised: object) -> dict[str, str]:
    """Return an exception as an error; for Celery's ``Reject`` that of its reason."""
    if not isinstance(raised, Reject):
        return describe_error(raised)
    if isinstance(raised.reason, BaseException):
        return describe_error(raised.reason)
    message = "" if raised.reason is None else describe_error(Exception(raised.reason))["message"]
    return make_error("Reject", message)
