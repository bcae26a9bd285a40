"""Celery's command ``revoke``, as a worker gets it.

Celery sends a signal for a revoked task only when it would have run: for one
that waits for its ETA hours later, for one that runs never. And it knows no
workflows. So the two commands are wrapped, in Celery's own table of commands.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import Panel

logger = logging.getLogger(__name__)

COMMANDS = {"revoke": 1, "terminate": 2}
"""The wrapped commands, each with the place of the task ids among its arguments."""


def follow_revokes(
    on_revoked: Callable[[str], None], running_members: Callable[[str], Iterable[str]]
) -> None:
    """Follow what this worker is told to revoke. Idempotent. For the worker's main process.

    Args:
        on_revoked: called with each task id, or id of a workflow, after Celery has done its part.
        running_members: returns the tasks of a workflow that run here. A command that terminates
            is given to Celery for these too. Raises nothing.
    """
    for name, place in COMMANDS.items():
        command = Panel.data.get(name)
        if command is not None:
            original = getattr(command, "followed", command)
            Panel.data[name] = _followed(original, place, on_revoked, running_members)


def is_revoked(job_id: str) -> bool:
    """Return True if this worker was told to revoke this task, or all tasks of this workflow."""
    return job_id in worker_state.revoked


def note_revoked(job_ids: Iterable[str]) -> None:
    """Make this worker discard these tasks, before it gets its first message."""
    worker_state.revoked.update(job_ids)


def _followed(
    command: Any,
    place: int,
    on_revoked: Callable[[str], None],
    running_members: Callable[[str], Iterable[str]],
) -> Callable[..., Any]:
    @functools.wraps(command)
    def followed(state: Any, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("task_id", args[place - 1] if len(args) >= place else ())
        revoked = [ids] if isinstance(ids, str) else [str(one) for one in ids or ()]
        answer = _run(command, revoked, state, *args, **kwargs)
        # First: what waits here must not begin in the place of what is terminated.
        for job_id in revoked:
            on_revoked(job_id)
        # The command `terminate` has its signal before the ids.
        if kwargs.get("terminate") or place == COMMANDS["terminate"]:
            found = {member for job_id in revoked for member in running_members(job_id)}
            if members := sorted(found.difference(revoked)):
                given = {"signal": args[0]} if place == 2 and args else {}
                _run(command, members, state, **{**kwargs, **given, "task_id": members})
        return answer

    followed.followed = command  # type: ignore[attr-defined]
    return followed


def _run(command: Any, job_ids: list[str], *args: Any, **kwargs: Any) -> Any:
    """Run Celery's command."""
    try:
        return command(*args, **kwargs)
    except NotImplementedError:
        # Celery has noted that they are revoked before.
        logger.warning(
            "tracker: not terminated, this pool cannot jobs=%s: their tasks run on unless they "
            "call job.raise_if_cancelled() (SEMANTIK_REALTIME_CANCEL_SIGNAL is for prefork)",
            ",".join(job_ids)[:200],
        )
        return {"error": "this pool cannot terminate a task"}
