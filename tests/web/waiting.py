"""Wait for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], seconds: float = 10.0, what: object = "") -> None:
    """Wait for ``condition``, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            described = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:g} s: {described}")
        await asyncio.sleep(0.01)


async def is_blocked(connection: Any) -> bool:
    """Return True if a write to a connection does not go on, because its client reads nothing.

    By then the connection counts as slow: what the server does with it depends on that.
    """
    since = connection._sending_since
    if since is None:
        return False
    await until(lambda: connection.is_slow or connection._sending_since != since)
    return bool(connection._sending_since == since)
