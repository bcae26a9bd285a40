"""The time as events have it."""

from __future__ import annotations

import functools
import time


def now_text() -> str:
    """Return the time now, in UTC, as RFC 3339 with milliseconds: ``2026-01-31T09:30:00.000Z``."""
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second_text(seconds)}.{milliseconds:03d}Z"


@functools.lru_cache(maxsize=2)
def _second_text(seconds: int) -> str:
    # Every event has a time, and formatting the date is the slow part of it.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
