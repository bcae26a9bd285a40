"""Wait for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

DEADLINE_SECONDS = 10.0


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until ``condition`` returns a true value; after 10 s the test fails and names ``what``.

    The condition may be a coroutine function.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                answer: Any = condition()
                if await answer if asyncio.iscoroutine(answer) else answer:
                    return
                await asyncio.sleep(0.005)
    pytest.fail(f"waited {DEADLINE_SECONDS:g} s for {what}")


async def until_unknown(backend: Any, topic: str) -> None:
    """Wait until the backend does not know a topic any more."""

    async def is_unknown() -> bool:
        return (await backend.snapshot(topic, None, 0)).cursor is None

    await until(is_unknown, f"{topic} to expire")


async def until_known(backend: Any, topic: str) -> None:
    """Wait until the backend knows a topic."""

    async def is_known() -> bool:
        return (await backend.snapshot(topic, None, 0)).cursor is not None

    await until(is_known, f"{topic} to begin")
