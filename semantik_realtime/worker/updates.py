"""Celery's own ``update_state``, mirrored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from semantik_realtime.worker.job import Job, current, make_error

ENDS = {"FAILURE": "job_failed", "REVOKED": "job_cancelled"}
"""States that a task sets before it raises ``Ignore``, to end in its own way."""
PLAIN = frozenset({"PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY", "SUCCESS", "IGNORED"})
"""States that say nothing which the job's status and progress do not."""


def mirror_updates(task: Any) -> None:
    """Make ``task.update_state`` tell the current job too; done once for each task.

    The result backend gets what it always got.
    """
    original: Callable[..., Any] = task.update_state
    if getattr(original, "is_mirrored", False):
        return

    @functools.wraps(original)
    def update_state(
        task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> Any:
        job = current()
        if job is not None and task_id in (None, job.id):
            tell_update(job, state, meta)
        return original(task_id, state, meta, **kwargs)

    update_state.is_mirrored = True  # type: ignore[attr-defined]
    task.update_state = update_state


def tell_update(job: Job, state: str | None, meta: Any) -> None:
    """Tell a job what ``update_state(state, meta)`` said.

    Of ``meta``, ``current`` and ``total`` are the progress, ``message`` or
    else ``status`` the message, and all else goes to ``fields``. A state of
    the application's own goes to ``fields`` as ``state``, and is the message
    if there is no other.
    """
    told = dict(meta) if isinstance(meta, Mapping) else {}
    if isinstance(state, str) and state in ENDS:
        kind, words = _text(told.pop("exc_type", state)), _text(told.pop("exc_message", ""))
        job.declared = ENDS[state], make_error(kind or state, words)
    elif isinstance(state, str) and state not in PLAIN:
        told.setdefault("state", state)
    message = next(
        (told.pop(name) for name in ("message", "status") if isinstance(told.get(name), str)),
        told.get("state"),
    )
    if isinstance(message, str):
        job.message(message)
    if isinstance(told.get("current"), int | float):
        job.progress(told.pop("current"), told.pop("total", None), None, told.pop("unit", None))
    told = {name: value for name, value in told.items() if isinstance(name, str)}
    if told:
        job.set(**told)


def _text(value: object) -> str:
    # Celery keeps an exception's message as the list of its arguments, some
    # applications as the lines of the traceback: the last one says it.
    lines = value if isinstance(value, list | tuple) else [value]
    return next((line for line in reversed(lines) if isinstance(line, str) and line), "")
