"""A loop in a thread, for callers that are not coroutines."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar

from semantik_realtime.errors import AppendUncertain, BackendUnavailable

Worker = TypeVar("Worker")
Answer = TypeVar("Answer")

STOP_SECONDS = 5.0
LONGEST_SECONDS = 60.0
"""Only a thread that is stuck takes so long."""


class LoopThread(Generic[Worker]):
    """Runs coroutines of a worker on a loop of its own; any thread may wait for them.

    The thread starts with the first call, and again after `close` and in a
    child after a fork.
    """

    def __init__(
        self, make: Callable[[], Worker], end: Callable[[Worker], Coroutine[Any, Any, None]]
    ) -> None:
        self._make = make
        self._end = end
        self._lock = threading.Lock()
        self._running: tuple[int, asyncio.AbstractEventLoop, threading.Thread, Worker] | None = None
        self._inherited: list[object] = []

    def run(self, call: Callable[[Worker], Coroutine[Any, Any, Answer]]) -> Answer:
        """The answer of ``call``, which has a deadline of its own.

        Raises:
            AppendUncertain: the thread was closed, or is stuck.
        """
        if self._running is not None and self._running[0] != os.getpid():
            self.close()
        with self._lock:
            if self._running is None:
                self._running = self._start()
            _, loop, _, worker = self._running
            future = asyncio.run_coroutine_threadsafe(call(worker), loop)
        try:
            return future.result(LONGEST_SECONDS)
        except (CancelledError, TimeoutError) as error:
            future.cancel()
            raise AppendUncertain("the writer was closed") from error

    def close(self) -> None:
        """End the thread. What it does for other callers now fails."""
        running = self._running
        if running is not None and running[0] != os.getpid():
            # The parent's: its loop shares our file descriptors, and even to close them would
            # take them from its selector. Another thread may have held the lock.
            self._inherited.append(running)
            self._running, self._lock = None, threading.Lock()
            return
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        _, loop, thread, worker = running
        asyncio.run_coroutine_threadsafe(self._finish(worker), loop)
        thread.join(STOP_SECONDS)

    def _start(self) -> tuple[int, asyncio.AbstractEventLoop, threading.Thread, Worker]:
        # Not the policy's: uvloop and fork do not go together.
        loop = asyncio.SelectorEventLoop()
        thread = threading.Thread(
            target=self._work, args=(loop,), name="semantik-realtime-nats", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            loop.close()
            raise BackendUnavailable(f"no thread: {error}") from error
        return os.getpid(), loop, thread, self._make()

    @staticmethod
    def _work(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    async def _finish(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._end(worker)
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.wait_for(asyncio.gather(*rest, return_exceptions=True), STOP_SECONDS / 2)
        finally:
            loop.stop()
