"""The life of a worker's processes: what is set up when they start, and sent when they end."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from celery import signals

from semantik_realtime.backends.guard import log_warnings
from semantik_realtime.core.workflow import whole_id
from semantik_realtime.emitter.handover import Handover
from semantik_realtime.emitter.registry import go_on, seconds_to_end
from semantik_realtime.native_threads import make_thread
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import listener
from semantik_realtime.worker.cancelled import RevokedResults
from semantik_realtime.worker.interrupted import end_interrupted_at_exit
from semantik_realtime.worker.pool_imports import add_to_imports
from semantik_realtime.worker.revokes import follow_revokes, note_revoked
from semantik_realtime.worker.stored_state import read_cancelled_jobs
from semantik_realtime.worker.undecodable import End, end_undecodable

logger = logging.getLogger(__name__)

WARNINGS_PAUSE_SECONDS = 5.0
"""Pause before the warnings of a backend that did not answer are read again."""


class WorkerProcess:
    """The receivers of Celery's signals for a worker and the processes of its pool.

    Args:
        runtime: returns the process's runtime, or None while the tracker is off.
        results: what the process still stores when it ends.
        on_revoked: called in a worker's main process with each task that it is told to revoke.
        running_members: returns the tasks of a workflow that run here.
        end: ends the job of a message that cannot be read.
    """

    def __init__(
        self,
        runtime: Callable[[], Runtime | None],
        results: RevokedResults,
        on_revoked: Callable[[str], None],
        running_members: Callable[[str], Iterable[str]],
        end: End,
    ) -> None:
        self._runtime = runtime
        self._results = results
        self._on_revoked = on_revoked
        self._running_members = running_members
        self._end = end
        # In the main process of a prefork worker without a spool directory: where the processes of
        # the pool leave what they could not send. Made at the worker's start, removed at its end.
        self._handover: Handover | None = None

    def receivers(self) -> list[tuple[Any, Callable[..., None]]]:
        """Return each signal with its receiver."""
        return [
            (signals.celeryd_init, self._worker_configured),
            (signals.worker_init, self._worker_init),
            (signals.worker_ready, self._worker_ready),
            (signals.worker_process_shutdown, self._process_shutdown),
            (signals.worker_shutdown, self._worker_shutdown),
        ]

    def _worker_configured(self, conf: Any, **_: Any) -> None:
        add_to_imports(conf)

    def _worker_init(self, sender: Any, **_: Any) -> None:
        go_on()
        runtime = self._runtime()
        if runtime is not None:
            end_undecodable(sender.app, self._end)
            # Celery itself forgets them when its last worker stops, and tells no worker of those
            # that were revoked while none ran.
            cancelled = read_cancelled_jobs(runtime)
            note_revoked([*cancelled, *map(whole_id, cancelled)])
            follow_revokes(self._on_revoked, self._running_members)
        # With a directory of the settings all processes share that one.
        if runtime is None or runtime.settings.spool_path is not None or not _is_prefork(sender):
            return
        try:
            self._handover = Handover.make()
        except OSError as error:
            logger.warning(
                "tracker: pool processes wait for the backend at their end error=%s", error
            )
            return
        runtime.emitter.accept_from_children(self._handover)

    def _worker_ready(self, **_: Any) -> None:
        runtime = self._runtime()
        if runtime is not None:
            runtime.emitter.recover()
            end_interrupted_at_exit()
            log = functools.partial(_log_warnings, runtime)
            make_thread(log, "semantik-realtime-warnings").start()

    def _process_shutdown(self, **_: Any) -> None:
        runtime = self._runtime()
        if runtime is not None:
            self._end_threads(runtime)
            runtime.emitter.leave_to_parent(seconds_to_end(runtime.settings.flush_seconds))

    def _end_threads(self, runtime: Runtime) -> None:
        seconds_to_end(runtime.settings.flush_seconds)
        listener.close()
        self._results.wait(seconds_to_end(runtime.settings.flush_seconds))

    def _worker_shutdown(self, **_: Any) -> None:
        runtime, handover = self._runtime(), self._handover
        if runtime is not None:
            self._end_threads(runtime)
        if runtime is not None and handover is not None:
            seconds = seconds_to_end(runtime.settings.flush_seconds)
            handover.collect(runtime.emitter.retry_now, seconds)
            handover.remove()
            self._handover = None


def _is_prefork(worker: Any) -> bool:
    """Return True if the pool of a worker consists of forked processes."""
    return str(getattr(worker.pool_cls, "__module__", "")).endswith(".prefork")


def _log_warnings(runtime: Runtime) -> None:
    """Log the backend's warnings as soon as it answers. Runs in a daemon thread."""
    try:
        while not asyncio.run(log_warnings(runtime.backend)):
            time.sleep(WARNINGS_PAUSE_SECONDS)
    except Exception:
        logger.exception("tracker: warnings of the backend not read")
