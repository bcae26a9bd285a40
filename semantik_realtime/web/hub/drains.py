"""How long the clients of a process take for what is written to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from semantik_realtime.core.backpressure import is_slow_write

STEP_SECONDS = 0.05
"""Between two looks at the writes that have not ended."""


class Drains:
    """The writes under way, each with the time for which the client's socket took nothing more.

    A look that comes late, because the loop was busy with something else,
    counts for `STEP_SECONDS` all the same: meanwhile no socket was written to.
    So a busy server does not take its clients for slow ones. For one loop.
    """

    def __init__(self) -> None:
        # How long each writer has waited for its client.
        self._waited: dict[Any, float] = {}
        # Looks at the writes after `STEP_SECONDS`; None while nothing is written.
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, writer: Any, send: Callable[[str], Awaitable[None]], frame: str) -> bool:
        """Send ``frame`` for ``writer``. Return whether the client was slow to take it."""
        self._waited[writer] = 0.0
        if self._timer is None:
            self._look_later()
        try:
            await send(frame)
        finally:
            waited = self._waited.pop(writer)
        # Hardly any write waits.
        return waited > 0 and is_slow_write(waited, len(frame))

    def is_slow(self, writer: Any, frame_bytes: int) -> bool:
        """Return True if the client is slow to take a frame that ``writer`` sends it now."""
        return is_slow_write(self._waited.get(writer, 0.0), frame_bytes)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(STEP_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        for writer in self._waited:
            self._waited[writer] += STEP_SECONDS
        if self._waited:
            self._look_later()
