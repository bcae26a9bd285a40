"""How often the progress of one key is sent."""

from __future__ import annotations

from collections.abc import Hashable

from semantik_realtime.core.limits import MAX_PACED_KEYS


class Pacer:
    """Lets each key send once in an interval, the first time at once.

    Remembers the ``max_keys`` keys that sent last; a forgotten key may send at
    once. ``now`` is in seconds, on any clock that does not go back.

    >>> pacer = Pacer()
    >>> pacer.wait_seconds("42", now=5.0)
    0.0
    >>> pacer.sent("42", now=5.0, interval_seconds=0.1)
    >>> round(pacer.wait_seconds("42", now=5.04), 2)
    0.06
    """

    def __init__(self, max_keys: int = MAX_PACED_KEYS) -> None:
        self._max_keys = max_keys
        # When each key may send again; the key that sent longest ago comes first.
        self._free_at: dict[Hashable, float] = {}

    def wait_seconds(self, key: Hashable, now: float) -> float:
        """Return the seconds until ``key`` may send; 0 if it may send now."""
        return max(0.0, self._free_at.get(key, now) - now)

    def sent(self, key: Hashable, now: float, interval_seconds: float) -> None:
        """Record that ``key`` was sent ``now``; it may send again ``interval_seconds`` later."""
        self._free_at.pop(key, None)
        self._free_at[key] = now + interval_seconds
        if len(self._free_at) > self._max_keys:
            del self._free_at[next(iter(self._free_at))]
