"""Progress of a loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from semantik_realtime.worker.current import current_job

Item = TypeVar("Item")


def track(
    iterable: Iterable[Item], message: str = "", *, unit: str = "", total: float | None = None
) -> Iterator[Item]:
    """Yield the items of ``iterable`` and report the loop's position as the job's progress.

    An item counts when the loop requests the next one. ``total`` is the
    iterable's length if it has one. Of nested loops the outermost sets the
    progress; an inner one sets the message while it runs.
    """
    job = current_job()
    if job is None:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    message_before = job.last_message
    is_outermost = job.open_loop()
    try:
        if is_outermost:
            job.progress(0, total, message or None, unit or None)
        elif message:
            job.message(message)
        for done, item in enumerate(iterable, 1):
            yield item
            if is_outermost:
                job.progress(done, total, None, unit or None)
    finally:
        job.close_loop()
        if not is_outermost and message and message_before is not None:
            job.message(message_before)
