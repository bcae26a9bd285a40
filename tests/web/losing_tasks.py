"""Tasks that lose their first cancellation, as a library may, at whatever they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

PREFIX = "semantik-realtime"
"""Of the names of the tasks of the package."""


class LosingTasks:
    """A task factory. Each task of the package loses its first cancellation, and waits on.

    Args:
        at: the number of the await, over all of these tasks, at which `reached` is set.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.awaits = 0
        self.reached = asyncio.Event()
        self.lost = 0
        """How many cancellations were lost."""
        self.tasks: list[asyncio.Task[Any]] = []

    def __call__(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> asyncio.Task[Any]:
        if str(options.get("name") or "").startswith(PREFIX) or _is_ours(work):
            task: asyncio.Task[Any] = asyncio.Task(_Losing(work, self), loop=loop, **options)
            self.tasks.append(task)
            return task
        return asyncio.Task(work, loop=loop, **options)

    def note_await(self) -> None:
        """Count a task that begins to wait."""
        self.awaits += 1
        if self.awaits == self.at:
            self.reached.set()


def _is_ours(work: Any) -> bool:
    # asyncio.create_task sets the name later on Python 3.11.
    code = getattr(work, "cr_code", None)
    return code is not None and "/semantik_realtime" in code.co_filename


class _Losing(Coroutine[Any, Any, Any]):
    def __init__(self, inner: Coroutine[Any, Any, Any], tasks: LosingTasks) -> None:
        self._inner = inner
        self._tasks = tasks
        self._has_lost = False
        # What the inner coroutine waits for; None: for the next turn of the loop.
        self._awaited: asyncio.Future[Any] | None = None

    def send(self, value: Any) -> Any:
        return self._wait_for(self._inner.send(value))

    def throw(self, error: Any, value: Any = None, traceback: Any = None) -> Any:
        awaited = self._awaited
        raised = error if isinstance(error, BaseException) else (value or error())
        if isinstance(raised, asyncio.CancelledError) and awaited is not None:
            if not self._has_lost:
                self._has_lost = True
                self._tasks.lost += 1
                return self.send(None) if awaited.done() else self._proxy(awaited)
            if awaited.cancel():
                # It raises the cancellation when its own callbacks were called.
                return self._proxy(awaited)
        return self._wait_for(self._inner.throw(raised))

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        raise NotImplementedError

    def _wait_for(self, awaited: Any) -> Any:
        self._tasks.note_await()
        self._awaited = awaited
        if awaited is None:
            return None
        # As a task does that begins to wait for it.
        awaited._asyncio_future_blocking = False
        return self._proxy(awaited)

    def _proxy(self, awaited: asyncio.Future[Any]) -> asyncio.Future[None]:
        """Return a future that a cancellation ends instead of what is awaited."""
        proxy: asyncio.Future[None] = awaited.get_loop().create_future()

        def finish(_: object) -> None:
            if not proxy.done():
                proxy.set_result(None)

        awaited.add_done_callback(finish)
        proxy._asyncio_future_blocking = True
        return proxy
