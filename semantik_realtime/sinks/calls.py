"""The calls of handlers: coroutines on the loop, functions in threads of their own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import Any

from semantik_realtime.sinks.registry import RegisteredSink, SinkEvent


class HandlerCalls:
    """The calls of one sink that run now. For one loop.

    A thread cannot be stopped, and those of an executor are waited for when the process ends: so
    these are daemons, and one that outlives its deadline counts until it returns.
    """

    def __init__(self, sink: RegisteredSink) -> None:
        self._sink = sink
        self.threads = 0
        """How many threads run; those of handlers that have failed by their deadline too."""

    async def call(self, event: SinkEvent) -> None:
        """Call the handler; raise what it raises.

        Raises:
            TimeoutError: it has not returned within its deadline, or a function of its own has not.
        """
        async with asyncio.timeout(self._sink.deadline_seconds):
            if self._sink.is_coroutine:
                await self._sink.handler(event)
            else:
                await self._in_thread(event)

    async def _in_thread(self, event: SinkEvent) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        context = contextvars.copy_context()

        def finish(error: BaseException | None) -> None:
            self.threads -= 1
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def run() -> None:
            error: BaseException | None = None
            try:
                result: Any = context.run(self._sink.handler, event)
                if hasattr(result, "__await__"):
                    # A function that returns a coroutine would do nothing.
                    if hasattr(result, "close"):
                        result.close()
                    raise TypeError("the sink is no coroutine function, and returns an awaitable")
            except BaseException as raised:
                # StopIteration cannot be the exception of a future.
                is_usual = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
                error = raised if is_usual else RuntimeError(repr(raised))
            # The loop may have ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish, error)

        self.threads += 1
        thread = threading.Thread(target=run, name=f"sink-{self._sink.name}", daemon=True)
        try:
            thread.start()
        except BaseException:
            self.threads -= 1
            raise
        await done
