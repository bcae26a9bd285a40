"""The exception that ends a job as cancelled, and what Celery stores of its task."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from celery.exceptions import Ignore

logger = logging.getLogger(__name__)


class JobCancelled(Ignore):  # type: ignore[misc]
    """Ends the current task, and its job as cancelled. Celery's state of the task is REVOKED.

    Raised by `semantik_realtime.worker.job.Job.raise_if_cancelled`. A task that
    catches `Exception` around its work lets this one pass.
    """


class RevokedResults:
    """Stores in Celery's result backend that a task was cancelled, outside of the task's thread.

    Celery itself stores nothing for a task that raises `Ignore`, and who waits for its result, or
    for a chord that it is a part of, would wait for ever.
    """

    def __init__(self) -> None:
        # The threads that store, until they end. A task ends by this at most once.
        self._storing: set[threading.Thread] = set()

    def store(self, task: Any) -> None:
        """Begin to store the result of the running request of ``task``."""
        request = task.request_stack.top
        if request is None or request.called_directly or request.is_eager:
            return
        is_kept = not (
            task.ignore_result if request.ignore_result is None else request.ignore_result
        )

        def run() -> None:
            try:
                # Celery's backends belong to a thread: this is one of this thread.
                task.backend.mark_as_revoked(
                    request.id,
                    "cancelled",
                    request=request,
                    store_result=is_kept or task.store_errors_even_if_ignored,
                )
            except Exception as error:
                logger.warning(
                    "tracker: result not stored job=%s error=%s", request.id, type(error).__name__
                )
            finally:
                self._storing.discard(thread)

        thread = threading.Thread(target=run, name="semantik-realtime-result", daemon=True)
        self._storing.add(thread)
        thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until everything is stored, for at most ``seconds``: the process ends."""
        deadline = time.monotonic() + seconds
        for thread in list(self._storing):
            thread.join(max(0.0, deadline - time.monotonic()))
