"""What a running job knows of a request to cancel it."""

from __future__ import annotations

import time
from abc import abstractmethod

from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.listener import watch

WATCHED_AFTER_SECONDS = 1.0
"""After how long requests to cancel reach a job that sends events but never asks for them."""


class Cancellable:
    """The part of `semantik_realtime.worker.job.Job` that a cancellation concerns."""

    id: str
    workflow: str | None
    runtime: Runtime

    cancel_requested = False
    """Whether the job is being cancelled. Set by `request_cancel`, never cleared."""
    is_aborted = False
    """Whether an ``AbortableTask`` was told that it is aborted. Set by `note_aborted`."""
    # When the attempt began in this process, on the monotonic clock. None: not here.
    _began_at: float | None = None
    # Whether requests to cancel reach the job. Set by `_watch`, never cleared.
    _is_watched = False

    @property
    def is_cancelled(self) -> bool:
        """Whether the job is being cancelled, as far as this process knows. Never waits.

        With the first call the process begins to receive requests; one that was made before
        arrives a moment later.
        """
        if not self._is_watched:
            self._watch()
        return self.cancel_requested

    def raise_if_cancelled(self) -> None:
        """End the task, and its job as cancelled, if that was requested.

        Costs less than a microsecond, and calls no server.

        Raises:
            JobCancelled: it was.
        """
        if self.is_cancelled:
            # Celery's: not imported where no task runs.
            from semantik_realtime.worker.cancelled import JobCancelled

            raise JobCancelled(self.id)

    @abstractmethod
    def request_cancel(self) -> None:
        """Note that the job is being cancelled. Its states show that until it ends. Idempotent."""

    def note_aborted(self) -> None:
        """Note that the task has asked and knows that it is aborted: its end is a cancellation."""
        self.is_aborted = True

    def note_start(self) -> None:
        """Note that the attempt begins in this process now."""
        self._began_at = time.monotonic()

    def watch_if_long(self) -> None:
        """Receive requests from now on, if the job has run for `WATCHED_AFTER_SECONDS`.

        Each of its events has its whole state, and would show a cancelled job as running again.
        """
        if not self._is_watched and self._began_at is not None:
            if time.monotonic() - self._began_at > WATCHED_AFTER_SECONDS:
                self._watch()

    def _watch(self) -> None:
        self._is_watched = True
        watch(self)
