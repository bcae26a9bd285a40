"""How often the progress of one key is sent, and how often a busy process makes a call."""

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


class CallPacer:
    """Lets ``burst`` calls be made at once, and then one in each interval.

    ``now`` is in seconds, on any clock that does not go back.

    >>> pacer = CallPacer(burst=2, interval_seconds=1.0)
    >>> for _ in range(3):
    ...     pacer.called(now=5.0)
    >>> pacer.wait_seconds(now=5.25), pacer.wait_seconds(now=8.0)
    (0.75, 0.0)
    """

    def __init__(self, burst: int, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._burst_seconds = burst * interval_seconds
        # When the burst is whole again.
        self._whole_at = float("-inf")

    def wait_seconds(self, now: float) -> float:
        """Return the seconds until a call may be made, at most an interval; 0: now."""
        early = self._whole_at + self._interval_seconds - self._burst_seconds - now
        return min(self._interval_seconds, max(0.0, early))

    def called(self, now: float) -> None:
        """Record a call made ``now``, allowed or not."""
        whole_at = max(self._whole_at, now) + self._interval_seconds
        self._whole_at = min(whole_at, now + self._burst_seconds)
