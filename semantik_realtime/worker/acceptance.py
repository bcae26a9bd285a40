"""A last look, before a pool runs a task, whether it has been revoked while it waited there.

Celery looks before it gives a task to the pool. A pool of threads, and a full one of greenlets,
keep the task as long as others run, and run it then, revoked or not.
"""

from __future__ import annotations

import logging
import weakref
from concurrent.futures import Executor
from typing import Any, NoReturn

from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from semantik_realtime.urls import mask_text
from semantik_realtime.worker.headers import WORKFLOW, read_header
from semantik_realtime.worker.listener import is_requested
from semantik_realtime.worker.revokes import is_revoked, note_revoked

logger = logging.getLogger(__name__)


class Acceptance:
    """What the pool calls when it begins with one request, in place of ``on_accepted``.

    Args:
        request: Celery's.
        is_green: whether the pool's tasks are greenlets.
    """

    def __init__(self, request: Any, is_green: bool) -> None:
        # Weak, because the request has this object, and is released by its last reference.
        self._request = weakref.ref(request)
        self._is_green = is_green
        self.has_begun = False
        """Whether the pool has begun. Set by the call, never cleared."""

    def __call__(self, pid: Any, time_accepted: float) -> Any:
        # First, so that a revocation that the next line misses finds the task begun.
        self.has_begun = True
        request = self._request()
        if request is None:
            return None
        if any(map(is_requested, (request.id, read_header(request.request_dict, WORKFLOW)))):
            # The listener may be faster than Celery's command.
            note_revoked([request.id])
        if is_revoked(request.id) and _discard(request):
            _leave_pool(request.id, self._is_green)
        return type(request).on_accepted(request, pid, time_accepted)


def look_at_acceptance(request: Any, pool: Any) -> None:
    """Have a request that was just received looked at again when the pool begins with it.

    Nothing changes in pools that keep no tasks waiting: solo, and prefork, which is given a task
    when a process is free.
    """
    is_green = bool(getattr(pool, "is_green", False))
    if is_green or isinstance(getattr(pool, "executor", None), Executor):
        request.on_accepted = Acceptance(request, is_green)


def is_active(request: Any) -> bool:
    """Return True if the task of a request runs, or will run whatever is revoked from now on."""
    acceptance = vars(request).get("on_accepted")
    if isinstance(acceptance, Acceptance):
        return acceptance.has_begun
    is_in_pool = getattr(request, "_apply_result", None) is not None
    return is_in_pool or request in worker_state.active_requests


def _discard(request: Any) -> bool:
    """Let Celery discard a revoked request. Return True: it must not run."""
    try:
        return bool(request.revoked())
    except Exception as error:
        # Of the result backend. The broker delivers the message again to a later worker, which
        # discards it.
        logger.warning(
            "tracker: revoked task not acknowledged job=%s error=%s",
            request.id,
            mask_text(repr(error))[:200],
        )
        return True


def _leave_pool(task_id: str, is_green: bool) -> NoReturn:
    """End the call of the pool before it calls the task."""
    if is_green:
        # The one exception that neither pool of greenlets reports.
        from greenlet import GreenletExit

        raise GreenletExit
    raise TaskRevokedError(task_id)
