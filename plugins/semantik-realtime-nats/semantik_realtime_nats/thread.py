"""A thread with an event loop, for callers that are not coroutines."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Generic, NamedTuple, TypeVar

from semantik_realtime.errors import AppendUncertain, BackendUnavailable

Worker = TypeVar("Worker")
Result = TypeVar("Result")

STOP_SECONDS = 5.0
MAX_CALL_SECONDS = 60.0
"""Every call has a shorter deadline of its own; this one ends the wait for a stuck thread."""


class _Running(NamedTuple, Generic[Worker]):
    pid: int
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    worker: Worker


class LoopThread(Generic[Worker]):
    """Runs coroutines of a worker object on an event loop in a thread; any thread may call `run`.

    The thread starts with the first call, with the next one after `close`, and with the first
    one in a child after a fork.
    """

    def __init__(
        self, make: Callable[[], Worker], end: Callable[[Worker], Coroutine[Any, Any, None]]
    ) -> None:
        """Start nothing yet.

        Args:
            make: makes the worker, when the thread starts.
            end: closes the worker, on the loop, when the thread ends.
        """
        self._make = make
        self._end = end
        self._lock = threading.Lock()
        """Held to start or stop the thread, and to hand it a call. A child gets a new one."""
        self._running: _Running[Worker] | None = None
        """The thread; in a child that of the parent, until the first call. None without one."""
        self._inherited: list[object] = []
        """What a child got from its parent; kept, so that nothing of it is closed."""

    def run(self, call: Callable[[Worker], Coroutine[Any, Any, Result]]) -> Result:
        """Run ``call`` on the loop and return its result; blocks the calling thread.

        Raises:
            BackendUnavailable: the thread cannot be started.
            AppendUncertain: the thread was closed during the call, or is stuck.
            Exception: what ``call`` raises.
        """
        if self._running is not None and self._running.pid != os.getpid():
            self.close()
        with self._lock:
            if self._running is None:
                self._running = self._start()
            future = asyncio.run_coroutine_threadsafe(
                call(self._running.worker), self._running.loop
            )
        try:
            return future.result(MAX_CALL_SECONDS)
        except (CancelledError, TimeoutError) as error:
            future.cancel()
            raise AppendUncertain("the writer was closed") from error

    def close(self) -> None:
        """End the thread; calls of other threads fail. Waits at most `STOP_SECONDS`. Idempotent."""
        running = self._running
        if running is not None and running.pid != os.getpid():
            # It is the parent's. Its loop shares our file descriptors: closing them here would
            # remove them from the parent's selector. Its lock may be held by a thread that does
            # not exist here.
            self._inherited.append(running)
            self._running, self._lock = None, threading.Lock()
            return
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        asyncio.run_coroutine_threadsafe(self._finish(running.worker), running.loop)
        running.thread.join(STOP_SECONDS)

    def _start(self) -> _Running[Worker]:
        # Not the policy's loop, because uvloop does not survive a fork.
        loop = asyncio.SelectorEventLoop()
        thread = threading.Thread(
            target=self._run_loop, args=(loop,), name="semantik-realtime-nats", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            loop.close()
            raise BackendUnavailable(f"no thread: {error}") from error
        return _Running(os.getpid(), loop, thread, self._make())

    @staticmethod
    def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
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
