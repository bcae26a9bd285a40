"""Publishers that make one call per event and wait for it, as the peers' do.

Each publishes one event when it is made, which opens its connection and is not counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

UNCOUNTED = -1
"""The number of that event."""


class SyncCalls:
    """Calls ``publish(number)`` for each event."""

    def __init__(self, publish: Callable[[int], object], close: Callable[[], object]) -> None:
        self._publish = publish
        self._close = close
        self.publish([UNCOUNTED])

    def publish(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._publish(number)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._close()


class AsyncCalls:
    """Awaits ``publish(number)`` for each event, on one event loop."""

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
            self._runner.run(_await(start))
        self.publish([UNCOUNTED])

    def publish(self, numbers: Sequence[int]) -> None:
        self._runner.run(self._publish_all(numbers))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._close is not None:
            self._runner.run(_await(self._close))
        self._runner.close()

    async def _publish_all(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            await self._publish(number)


async def _await(call: Callable[[], Awaitable[object]]) -> None:
    await call()
