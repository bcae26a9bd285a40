"""Cancellations that a library must not swallow, and tasks that must end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

STOP_SECONDS = 1.0
"""How long a stop waits for its tasks. They need milliseconds, unless something hangs."""
REPEAT_SECONDS = 0.2
"""Between two cancellations of a task. Shorter than that would end its own clean-up."""

Result = TypeVar("Result")


async def keep_cancellation(call: Awaitable[Result]) -> Result:
    """Await ``call``; if the task is cancelled in the meantime, raise CancelledError for sure.

    Libraries use `asyncio.wait_for`, which until Python 3.12 returns the result
    instead when both come at the same moment. A loop that goes on after that
    never ends: `asyncio.run` cancels every task only once, and waits for it.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        result = await call
    except Exception as error:
        if task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return result


def cancel_until_done(task: asyncio.Future[Any], after_seconds: float = 0.0) -> None:
    """Cancel a task, and go on doing so until it has ended: a library may lose a cancellation.

    Returns at once. On the task's loop. With ``after_seconds`` it begins that much later.
    """
    loop = task.get_loop()
    if loop.is_closed():
        return
    if after_seconds:
        loop.call_later(after_seconds, cancel_until_done, task)
    # False: it has ended. What it raised then counts as retrieved, and is not logged.
    elif task.cancel():
        loop.call_later(REPEAT_SECONDS, cancel_until_done, task)


async def stop_tasks(
    tasks: Iterable[asyncio.Future[Any]], timeout_seconds: float = STOP_SECONDS
) -> None:
    """Cancel tasks and wait until they have ended, for ``timeout_seconds`` at most.

    The task that calls it is left out. One that has not ended by then is logged,
    and cancelled further on. What the tasks raise is not raised here.
    """
    current = asyncio.current_task()
    others = [task for task in tasks if task is not current]
    for task in others:
        cancel_until_done(task)
    pending = {task for task in others if not task.done()}
    if pending:
        _, pending = await asyncio.wait(pending, timeout=timeout_seconds)
    for task in pending:
        name = task.get_name() if isinstance(task, asyncio.Task) else "call"
        logger.warning("stop: a task goes on name=%s seconds=%.1f", name, timeout_seconds)
