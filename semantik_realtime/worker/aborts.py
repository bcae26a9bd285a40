"""Celery's ``AbortableTask``: one that was told it is aborted ends its job as cancelled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery.contrib.abortable import AbortableAsyncResult, AbortableTask

from semantik_realtime.worker.current import current_job


def follow_aborts(task: Any) -> None:
    """Note when ``task.is_aborted`` returns True to the current job; done once for each task."""
    if not isinstance(task, AbortableTask):
        return
    original: Callable[..., Any] = task.is_aborted
    if getattr(original, "is_followed", False):
        return

    @functools.wraps(original)
    def is_aborted(**kwargs: Any) -> Any:
        answer = original(**kwargs)
        job = current_job()
        if answer and job is not None and kwargs.get("task_id") in (None, job.id):
            job.note_aborted()
        return answer

    is_aborted.is_followed = True  # type: ignore[attr-defined]
    task.is_aborted = is_aborted


def abort(app: Any, task_id: str, name: str | None) -> None:
    """Set the state of a task to ABORTED, if it is abortable, or not known in this process.

    For a task that runs: Celery itself replaces that state by the task's result. Calls the result
    backend.
    """
    task = None if name is None else app.tasks.get(name)
    if task is None or isinstance(task, AbortableTask):
        result = AbortableAsyncResult(task_id, backend=(task or app).backend)
        if not result.ready():
            result.abort()
