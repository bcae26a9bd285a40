"""How long the clients of a process take for what is written to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from semantik_realtime.core.backpressure import is_slow_write

STEP_SECONDS = 0.05
"""Between two looks at the writes that have not ended."""


class _Write(msgspec.Struct):
    """A write that is under way."""

    bytes: int
    waited_seconds: float = 0.0


class Drains:
    """The writes under way, each with the time for which the client's socket took nothing more.

    A look that comes late, because the loop was busy with something else,
    counts for `STEP_SECONDS` all the same: meanwhile no socket was written to.
    So a busy server does not take its clients for slow ones. For one loop.
    """

    def __init__(self) -> None:
        self._writes: dict[Any, _Write] = {}
        # Looks at the writes after `STEP_SECONDS`; None while nothing is written.
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, writer: Any, send: Callable[[str], Awaitable[None]], frame: str) -> bool:
        """Send ``frame`` for ``writer``. Return whether the client was slow to take it."""
        write = self._writes[writer] = _Write(len(frame))
        if self._timer is None:
            self._look_later()
        try:
            await send(frame)
        finally:
            del self._writes[writer]
        return is_slow_write(write.waited_seconds, write.bytes)

    def is_slow(self, writer: Any) -> bool:
        """Return True if the client is slow to take what ``writer`` sends it now."""
        write = self._writes.get(writer)
        return write is not None and is_slow_write(write.waited_seconds, write.bytes)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(STEP_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        for write in self._writes.values():
            write.waited_seconds += STEP_SECONDS
        if self._writes:
            self._look_later()
