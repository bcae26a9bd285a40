"""Celery's command ``revoke``, as a worker gets it.

Celery sends a signal for a revoked task only when it would have run: for one
that waits for its ETA hours later, for one that runs never. So the two commands
are wrapped, in Celery's own table of commands.
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


def follow_revokes(on_revoked: Callable[[str], None]) -> None:
    """Call ``on_revoked`` with the id of each task that this worker is told to revoke. Idempotent.

    Called in the worker's main process, after Celery has done its part.
    """
    for name, place in COMMANDS.items():
        command = Panel.data.get(name)
        if command is not None:
            original = getattr(command, "followed", command)
            Panel.data[name] = _followed(original, place, on_revoked)


def is_revoked(job_id: str) -> bool:
    """Return True if this worker was told to revoke this task, or all tasks of this workflow."""
    return job_id in worker_state.revoked


def note_revoked(job_ids: Iterable[str]) -> None:
    """Make this worker discard these tasks, before it gets its first message."""
    worker_state.revoked.update(job_ids)


def _followed(command: Any, place: int, on_revoked: Callable[[str], None]) -> Callable[..., Any]:
    @functools.wraps(command)
    def followed(state: Any, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("task_id", args[place - 1] if len(args) >= place else ())
        revoked = [ids] if isinstance(ids, str) else [str(one) for one in ids or ()]
        try:
            answer = command(state, *args, **kwargs)
        except NotImplementedError:
            # Celery has noted that they are revoked before.
            logger.warning(
                "tracker: not terminated, this pool cannot jobs=%s: their tasks run on unless they "
                "call job.raise_if_cancelled() (SEMANTIK_REALTIME_CANCEL_SIGNAL is for prefork)",
                ",".join(revoked)[:200],
            )
            answer = {"error": "this pool cannot terminate a task"}
        for job_id in revoked:
            on_revoked(job_id)
        return answer

    followed.followed = command  # type: ignore[attr-defined]
    return followed
