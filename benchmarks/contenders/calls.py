"""Publishing by one call an event, each awaited: how the peers do it.

Each begins with an event that nobody awaits, so that its connection is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

BEFORE = -1
"""A number that is not counted."""


class SyncCalls:
    """``publish(number)`` for each event."""

    def __init__(self, publish: Callable[[int], object], close: Callable[[], object]) -> None:
        self._publish = publish
        self._close = close
        self.tell([BEFORE])

    def tell(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._publish(number)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._close()


class AsyncCalls:
    """``await publish(number)`` for each event, on one event loop."""

    def __init__(
        self,
        publish: Callable[[int], Awaitable[object]],
        *,
        start: Callable[[], Awaitable[object]] | None = None,
        close: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._publish = publish
        self._close = close
        self._runner = asyncio.Runner()
        if start is not None:
            self._runner.run(_wait_for(start))
        self.tell([BEFORE])

    def tell(self, numbers: Sequence[int]) -> None:
        self._runner.run(self._tell(numbers))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._close is not None:
            self._runner.run(_wait_for(self._close))
        self._runner.close()

    async def _tell(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            await self._publish(number)


async def _wait_for(call: Callable[[], Awaitable[object]]) -> None:
    await call()
