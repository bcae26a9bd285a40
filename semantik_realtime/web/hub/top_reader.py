"""One reading of tops for all that ask for one at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from semantik_realtime.hookspecs import Top

Tops = dict[str, Top]


class TopReader:
    """Reads tops in batches: one call at a time, and what is asked meanwhile is the next one's.

    A call never answers a question that was asked after it had begun. For one
    loop at a time; the first question on a new loop begins anew.

    Args:
        read: `semantik_realtime.hookspecs.Backend.tops`.
        spawn: starts a task that ends with the hub.
    """

    def __init__(
        self,
        read: Callable[[Sequence[str]], Awaitable[Tops]],
        spawn: Callable[[Coroutine[Any, Any, Tops], str], asyncio.Task[Tops]],
    ) -> None:
        self._read = read
        self._spawn = spawn
        # The topics of the next call, and the call, which may still wait for the one before.
        self._topics: set[str] = set()
        self._next: asyncio.Task[Tops] | None = None
        # Held during a call; made anew for each loop.
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(self, topic: str) -> Top | None:
        """Return where a topic ends; None if the backend does not know it.

        Raises:
            BackendError: it cannot be asked now.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock, self._next = loop, asyncio.Lock(), None
        call = self._next
        if call is None or call.done():
            self._topics = set()
            call = self._next = self._spawn(self._call(self._topics), "tops")
        self._topics.add(topic)
        return (await asyncio.shield(call)).get(topic)

    async def _call(self, topics: set[str]) -> Tops:
        async with self._lock:
            if self._topics is topics:
                # From here on another call gets the questions.
                self._next = None
            return await self._read(list(topics))
