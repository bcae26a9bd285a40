"""The time as events have it."""

from __future__ import annotations

import functools
import time

# The last millisecond and its text. A loop that emits asks for the same one many times.
_last = (0, "")


def now_milliseconds() -> int:
    """Return the time now, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def now_text() -> str:
    """Return the time now, in UTC, as RFC 3339 with milliseconds: ``2026-01-31T09:30:00.000Z``."""
    return milliseconds_text(now_milliseconds())


def milliseconds_text(milliseconds: int) -> str:
    """Return a time, in milliseconds since 1970, in the same form."""
    global _last
    # Read once: another thread may replace it.
    last = _last
    if last[0] != milliseconds:
        _last = last = (milliseconds, _text(milliseconds))
    return last[1]


def time_text(seconds: float) -> str:
    """Return a time, in seconds since 1970, in the same form."""
    return _text(int(seconds * 1000))


def _text(milliseconds: int) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{_second_text(seconds)}.{milliseconds:03d}Z"


@functools.lru_cache(maxsize=2)
def _second_text(seconds: int) -> str:
    # Every event has a time, and formatting the date is the slow part of it.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
