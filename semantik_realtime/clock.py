"""The time as events have it."""

from __future__ import annotations

import functools
import time

# The last millisecond and its text. A loop that emits asks for the same one many times.
_last = (0, "")


def now_text() -> str:
    """Return the time now, in UTC, as RFC 3339 with milliseconds: ``2026-01-31T09:30:00.000Z``."""
    global _last
    now = time.time_ns() // 1_000_000
    # Read once: another thread may replace it.
    last = _last
    if last[0] != now:
        seconds, milliseconds = divmod(now, 1000)
        _last = last = (now, f"{_second_text(seconds)}.{milliseconds:03d}Z")
    return last[1]


@functools.lru_cache(maxsize=2)
def _second_text(seconds: int) -> str:
    # Every event has a time, and formatting the date is the slow part of it.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
