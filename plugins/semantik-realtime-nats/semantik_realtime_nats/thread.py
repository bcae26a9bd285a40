"""A thread with an event loop, for callers that are not coroutines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.errors import AppendUncertain, BackendUnavailable
from semantik_realtime.native_threads import Event, Thread, make_event, make_lock, make_thread

Worker = TypeVar("Worker")
Result = TypeVar("Result")

STOP_SECONDS = 2.0
MAX_CALL_SECONDS = 60.0
"""Every call has a shorter deadline of its own; this one ends the wait for a stuck thread."""


class _Running(NamedTuple, Generic[Worker]):
    pid: int
    loop: asyncio.AbstractEventLoop
    thread: Thread
    worker: Worker


class _Call(Generic[Result]):
    """A call that the loop runs for another thread.

    Not a future of `concurrent.futures`: its lock would be one for greenlets where gevent or
    eventlet replaces those of `threading`.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self.coroutine = coroutine
        self.is_done: Event = make_event()
        # The task that runs it; None before the loop begins with it.
        self.task: asyncio.Task[Result] | None = None

    def begin(self) -> None:
        """Run it. On the loop."""
        self.task = asyncio.ensure_future(self.coroutine)
        self.task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Result]) -> None:
        if not task.cancelled():
            # Retrieved, so that asyncio does not log it: `result` raises it, if anyone waits.
            task.exception()
        self.is_done.set()

    def result(self) -> Result:
        """Return what it has returned. After `is_done` is set, in any thread."""
        if self.task is None:
            raise asyncio.CancelledError
        return self.task.result()


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
        self._lock = make_lock()
        """Held to start or stop the thread, and to hand it a call. A child gets a new one."""
        self._running: _Running[Worker] | None = None
        """The thread; in a child that of the parent, until the first call. None without one."""
        self._inherited: list[object] = []
        """What a child got from its parent; kept, so that nothing of it is closed."""

    @property
    def worker(self) -> Worker | None:
        """The worker of this process, if the thread runs. For what it may do in any thread."""
        running = self._running
        return running.worker if running is not None and running.pid == os.getpid() else None

    def post(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` on the loop soon, without waiting; not at all if the thread ends."""
        running = self._running
        if running is not None and running.pid == os.getpid():
            with suppress(RuntimeError):  # The loop is closed.
                running.loop.call_soon_threadsafe(callback)

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
            loop = self._running.loop
            running = _Call(call(self._running.worker))
            loop.call_soon_threadsafe(running.begin)
        try:
            if running.is_done.wait(MAX_CALL_SECONDS):
                return running.result()
            task = running.task
            with suppress(RuntimeError):  # The loop is closed.
                loop.call_soon_threadsafe(lambda: task and task.cancel())
            raise AppendUncertain("the writer is stuck")
        except asyncio.CancelledError as error:
            raise AppendUncertain("the writer was closed") from error

    def close(self) -> None:
        """End the thread; calls of other threads fail. Waits at most `STOP_SECONDS`. Idempotent."""
        running = self._running
        if running is not None and running.pid != os.getpid():
            # It is the parent's. Its loop shares our file descriptors: closing them here would
            # remove them from the parent's selector. Its lock may be held by a thread that does
            # not exist here.
            self._inherited.append(running)
            self._running, self._lock = None, make_lock()
            return
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        ending = _Call(self._finish(running.worker))
        running.loop.call_soon_threadsafe(ending.begin)
        running.thread.join(STOP_SECONDS)

    def _start(self) -> _Running[Worker]:
        loops: list[asyncio.AbstractEventLoop] = []
        is_made = make_event()

        def run() -> None:
            try:
                # In the thread: with gevent its selector belongs to the thread that makes it. And
                # not the policy's loop, because uvloop does not survive a fork.
                loop = asyncio.SelectorEventLoop()
                loops.append(loop)
            finally:
                is_made.set()
            asyncio.set_event_loop(loop)
            try:
                loop.run_forever()
            finally:
                loop.close()

        thread = make_thread(run, "semantik-realtime-nats")
        try:
            thread.start()
        except RuntimeError as error:
            raise BackendUnavailable(f"no thread: {error}") from error
        is_made.wait()
        if not loops:
            raise BackendUnavailable("no event loop: see the log")
        return _Running(os.getpid(), loops[0], thread, self._make())

    async def _finish(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._end(worker)
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            await stop_tasks(rest, STOP_SECONDS / 2)
        finally:
            # After what is due already: a call that has just ended still has to say so.
            loop.call_soon(loop.stop)
