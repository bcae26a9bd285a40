"""How often the progress of one key is sent."""

from __future__ import annotations

from collections.abc import Hashable


class Pacer:
    """Lets each key through at most once an interval, the first time at once.

    >>> pacer = Pacer()
    >>> pacer.wait_seconds("42", now=5.0)
    0.0
    >>> pacer.sent("42", now=5.0, interval_seconds=0.1)
    >>> round(pacer.wait_seconds("42", now=5.04), 2)
    0.06
    """

    def __init__(self, max_keys: int = 10_000) -> None:
        self._max_keys = max_keys
        self._free_at: dict[Hashable, float] = {}

    def wait_seconds(self, key: Hashable, now: float) -> float:
        """Seconds until ``key`` may be sent; 0 when it may be sent now."""
        return max(0.0, self._free_at.get(key, now) - now)

    def sent(self, key: Hashable, now: float, interval_seconds: float) -> None:
        """Remember that ``key`` was sent: it waits ``interval_seconds`` from ``now``."""
        self._free_at.pop(key, None)
        self._free_at[key] = now + interval_seconds
        if len(self._free_at) > self._max_keys:
            # dicts keep insertion order: this key was sent longest ago.
            del self._free_at[next(iter(self._free_at))]
