"""Progress of a loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from semantik_realtime.worker.job import current

Item = TypeVar("Item")


def track(
    iterable: Iterable[Item], message: str = "", *, unit: str = "", total: float | None = None
) -> Iterator[Item]:
    """Go through ``iterable`` and show how far the job is.

    An item counts when the loop asks for the next one. ``total`` is the
    iterable's length if it has one. Of loops within loops the outermost moves
    the progress; the inner ones show their message while they last.
    """
    job = current()
    if job is None:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    outermost = job.tracks == 0
    before = job.spoken_message()
    job.tracks += 1
    try:
        if outermost:
            job.progress(0, total, message or None, unit or None)
        elif message:
            job.message(message)
        for done, item in enumerate(iterable, 1):
            yield item
            if outermost:
                job.progress(done, total, None, unit or None)
    finally:
        job.tracks -= 1
        if not outermost and message and before is not None:
            job.message(before)
