"""Celery's own ``update_state``, mirrored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from semantik_realtime.worker.current import current_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.values import make_error

TYPE_OF_CELERY_STATE = {"FAILURE": "job_failed", "REVOKED": "job_cancelled"}
"""The end that a task declares when it sets this state before it raises ``Ignore``."""
REDUNDANT_STATES = frozenset(
    {"PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY", "SUCCESS", "IGNORED"}
)
"""Celery's states that add nothing to the job's status and progress."""


def mirror_updates(task: Any) -> None:
    """Make ``task.update_state`` update the current job too; done once for each task.

    The result backend gets what it got before.
    """
    original: Callable[..., Any] = task.update_state
    if getattr(original, "is_mirrored", False):
        return

    @functools.wraps(original)
    def update_state(
        task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> Any:
        job = current_job()
        if job is not None and task_id in (None, job.id):
            apply_update(job, state, meta)
        return original(task_id, state, meta, **kwargs)

    update_state.is_mirrored = True  # type: ignore[attr-defined]
    task.update_state = update_state


def apply_update(job: Job, state: str | None, meta: Any) -> None:
    """Report ``update_state(state, meta)`` to ``job``.

    Of ``meta``, ``current`` and ``total`` are the progress, ``message`` or
    else ``status`` is the message, and the other members go to ``fields``. A
    state of the application's own goes to ``fields`` as ``state``, and is the
    message if there is no other.
    """
    members = dict(meta) if isinstance(meta, Mapping) else {}
    if isinstance(state, str) and state in TYPE_OF_CELERY_STATE:
        error_type = _text(members.pop("exc_type", state)) or state
        error_message = _text(members.pop("exc_message", ""))
        job.declare_end(TYPE_OF_CELERY_STATE[state], make_error(error_type, error_message))
    elif isinstance(state, str) and state not in REDUNDANT_STATES:
        members.setdefault("state", state)
    message = next(
        (members.pop(name) for name in ("message", "status") if isinstance(members.get(name), str)),
        members.get("state"),
    )
    if isinstance(message, str):
        job.message(message)
    if isinstance(members.get("current"), int | float):
        job.progress(
            members.pop("current"), members.pop("total", None), None, members.pop("unit", None)
        )
    fields = {name: value for name, value in members.items() if isinstance(name, str)}
    if fields:
        job.set(**fields)


def _text(value: object) -> str:
    # Celery keeps an exception's message as the list of its arguments, some applications
    # as the lines of the traceback, whose last line is the message.
    lines = value if isinstance(value, list | tuple) else [value]
    return next((line for line in reversed(lines) if isinstance(line, str) and line), "")
