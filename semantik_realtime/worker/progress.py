"""Progress of a loop."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from typing import Any, TypeVar, overload

from semantik_realtime.worker.bars import Bar
from semantik_realtime.worker.current import current_job

Item = TypeVar("Item")


@overload
def track(
    iterable: Iterable[Item], message: str = "", *, unit: str = "", total: float | None = None
) -> Iterator[Item]: ...
@overload
def track(
    iterable: AsyncIterable[Item], message: str = "", *, unit: str = "", total: float | None = None
) -> AsyncIterator[Item]: ...
def track(iterable: Any, message: str = "", *, unit: str = "", total: float | None = None) -> Any:
    """Yield the items of ``iterable`` and report the loop's position as the job's progress.

    For ``for``, and for ``async for`` if ``iterable`` is an asynchronous one. An
    item counts when the loop requests the next one. ``total`` is the
    iterable's length if it has one; else it is unknown. Of nested loops the
    outermost sets the progress; an inner one is in ``progress.inner``, and sets
    the message while it runs. A loop that ends early leaves the progress where
    it was.
    """
    if not hasattr(iterable, "__iter__") and hasattr(iterable, "__aiter__"):
        return _AsyncLoop(iterable, message, unit, _total_of(iterable, total))
    return _loop(iterable, message, unit, total)


def _total_of(iterable: object, total: float | None) -> float | None:
    return len(iterable) if total is None and isinstance(iterable, Sized) else total


def _loop(iterable: Iterable[Item], message: str, unit: str, total: float | None) -> Iterator[Item]:
    job = current_job()
    if job is None:
        yield from iterable
        return
    bar = Bar(job, _total_of(iterable, total), message, unit)
    try:
        for done, item in enumerate(iterable, 1):
            yield item
            bar.set(done)
    finally:
        bar.close()


class _AsyncLoop(AsyncIterator[Item]):
    """The same for ``async for``.

    No generator: one that a ``break`` leaves would close its bar later, when the event loop
    gets to it, and the next loop would be an inner one.
    """

    def __init__(
        self, iterable: AsyncIterable[Item], message: str, unit: str, total: float | None
    ) -> None:
        self._items = iterable.__aiter__()
        self._arguments = total, message, unit
        # Made when the loop requests its first item; None before.
        self._bar: Bar | None = None
        self._done = 0

    async def __anext__(self) -> Item:
        if self._bar is None:
            self._bar = Bar(current_job(), *self._arguments)
        elif self._done:
            self._bar.set(self._done)
        try:
            item = await self._items.__anext__()
        except BaseException:
            self._bar.close()
            raise
        self._done += 1
        return item

    async def aclose(self) -> None:
        """End the loop early, as of an asynchronous generator."""
        self._close()
        close = getattr(self._items, "aclose", None)
        if close is not None:
            await close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    __del__ = _close
