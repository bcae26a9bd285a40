"""A cancellation that a library must not swallow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

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
