"""Celery's own ``update_state``, mirrored."""

from __future__ import annotations

import functools
import numbers
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from semantik_realtime.worker.current import current_job, running_jobs
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.values import BAD_VALUE, describe_error, make_error, note_misuse

TYPE_OF_CELERY_STATE = {"FAILURE": "job_failed", "REVOKED": "job_cancelled"}
"""The end that a task declares when it sets this state before it raises ``Ignore``."""
REDUNDANT_STATES = frozenset(
    {"PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY", "SUCCESS", "IGNORED"}
)
"""Celery's states that add nothing to the job's status and progress."""
PERCENT = ("progress", "percent", "percentage")
"""Members that are a percentage, 0 to 100."""
MESSAGE = ("message", "status", "description")
"""Members that are the message; the first one that has a text is used."""
_NUMBER = re.compile(r"\s*([+-]?\d{1,15}(?:\.\d{0,15})?)\s*%?\s*")


def mirror_updates(task: Any) -> None:
    """Make ``task.update_state`` update the job too; done once for each task.

    The job is that of ``task_id``, from any thread of the process that runs it;
    without a ``task_id`` it is the current one. The result backend gets what it got before.
    """
    original: Callable[..., Any] = task.update_state
    if getattr(original, "is_mirrored", False):
        return

    @functools.wraps(original)
    def update_state(
        task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> Any:
        job = _job_of(task_id)
        if job is not None and job.mirrors.updates:
            try:
                apply_update(job, state, meta)
            except BAD_VALUE as error:
                note_misuse("update of another shape", job.id, str(error))
        return original(task_id, state, meta, **kwargs)

    update_state.is_mirrored = True  # type: ignore[attr-defined]
    task.update_state = update_state


def _job_of(task_id: object) -> Job | None:
    current = current_job()
    if task_id is None or (current is not None and current.id == task_id):
        return current
    return running_jobs.get(str(task_id))


def apply_update(job: Job, state: str | None, meta: Any) -> None:
    """Report ``update_state(state, meta)`` to ``job``.

    Of ``meta``, the progress is ``current`` of ``total`` (or ``progress`` of ``total``),
    or else ``progress``, ``percent`` or ``percentage`` of 100; each may be a
    number or its text. ``message``, ``status`` or ``description`` is the
    message. The other members go to ``fields``. A ``meta`` that is a number is a
    percentage, and one that is a text is the message. A state of the application's own
    goes to ``fields`` as ``state``, and is the message if there is no other.
    """
    if isinstance(state, str) and state in TYPE_OF_CELERY_STATE:
        members = dict(meta) if isinstance(meta, Mapping) else {}
        error_type = _text(members.pop("exc_type", state)) or state
        error = make_error(error_type, _text(members.pop("exc_message", "")))
        if isinstance(meta, BaseException):
            error = describe_error(meta)
        job.declare_end(TYPE_OF_CELERY_STATE[state], error)
    else:
        members = _members_of(meta)
        if isinstance(state, str) and state not in REDUNDANT_STATES:
            members.setdefault("state", state)
    texts = [name for name in MESSAGE if isinstance(members.get(name), str)]
    # The first one that says something.
    shown = next((name for name in texts if members[name]), None)
    message = members.get("state") if shown is None else members.pop(shown)
    for name in texts:
        if members.get(name) == "":
            del members[name]
            message = "" if message is None else message
    if isinstance(message, str):
        job.message(message)
    amount = _take_amount(members)
    if amount is not None:
        job.progress(*amount[:2], None, amount[2])
    fields = {name: value for name, value in members.items() if isinstance(name, str)}
    if fields:
        job.set(**fields)


def _members_of(meta: Any) -> dict[Any, Any]:
    if isinstance(meta, Mapping):
        return dict(meta)
    if _number(meta) is not None:
        return {"percent": meta}
    return {"message": meta} if isinstance(meta, str) else {}


def _take_amount(members: dict[Any, Any]) -> tuple[Any, Any, Any] | None:
    """Remove the progress from ``members``: current, total and unit; None: there is none."""
    inner = members.get("progress")
    if isinstance(inner, Mapping) and _number(inner.get("current")) is not None:
        del members["progress"]
        members |= {name: inner[name] for name in ("current", "total", "unit") if name in inner}
    current, total = _number(members.get("current")), _number(members.get("total"))
    percents = [name for name in PERCENT if _number(members.get(name)) is not None]
    if current is None and percents and percents[0] == "progress" and total is not None:
        current = _number(members["progress"])
    if current is None:
        if not percents:
            return None
        current, total = _number(members[percents[0]]), 100
        members.pop("unit", None)
        amount: tuple[Any, Any, Any] = current, total, "%"
    else:
        amount = current, total, members.pop("unit", None)
        for name in ("current", "total"):
            members.pop(name, None)
    for name in percents:
        # Beside another amount they say the same again.
        del members[name]
    return amount


def _number(value: object) -> float | None:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if isinstance(value, Decimal):
        return None if value.is_nan() else float(value)
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    return float(found[1]) if "." in found[1] else int(found[1])


def _text(value: object) -> str:
    # Celery keeps an exception's message as the list of its arguments, some applications
    # as the lines of the traceback, whose last line is the message.
    lines = value if isinstance(value, list | tuple) else [value]
    return next((line for line in reversed(lines) if isinstance(line, str) and line), "")
