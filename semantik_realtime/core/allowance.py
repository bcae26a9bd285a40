"""How much a client may send: a token bucket."""

from __future__ import annotations


class Allowance:
    """Lets a client send ``burst`` units at once, and ``per_second`` units a second after that.

    Nothing is refused. `spend` returns how long the caller waits before it reads
    the client's next frame, so the network slows the client down. ``now`` is in
    seconds, on any clock that does not go back.

    >>> allowance = Allowance(burst=2, per_second=10, now=5.0)
    >>> [allowance.spend(1, now=5.0) for _ in range(4)]
    [0.0, 0.0, 0.1, 0.2]
    >>> allowance.behind_seconds(now=6.5)
    1.5
    """

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._burst = burst
        self._per_second = per_second
        # The units that are left; negative: the client has to wait for so many.
        self._left = burst
        self._counted_at = now
        # Since when every `spend` has made the client wait; None: the last one did not.
        self._behind_since: float | None = None

    def spend(self, units: float, now: float) -> float:
        """Take ``units`` for a frame; return the seconds to wait before the next one is read."""
        passed = max(0.0, now - self._counted_at)
        self._left = min(self._burst, self._left + passed * self._per_second) - units
        self._counted_at = max(now, self._counted_at)
        if self._left >= 0:
            self._behind_since = None
            return 0.0
        if self._behind_since is None:
            self._behind_since = now
        return -self._left / self._per_second

    def try_spend(self, units: float, now: float) -> bool:
        """Take ``units`` if there are so many. Return False if not: nothing was taken.

        >>> allowance = Allowance(burst=1, per_second=10, now=5.0)
        >>> [allowance.try_spend(1, now=now) for now in (5.0, 5.0, 5.2)]
        [True, False, True]
        """
        passed = max(0.0, now - self._counted_at)
        self._left = min(self._burst, self._left + passed * self._per_second)
        self._counted_at = max(now, self._counted_at)
        if self._left < units:
            return False
        self._left -= units
        return True

    def behind_seconds(self, now: float) -> float:
        """Return how long the client has sent more than it may, without a pause; 0: it has not."""
        return 0.0 if self._behind_since is None else now - self._behind_since


class Budget:
    """Admits ``burst`` units at once and ``per_second`` a second after that, and counts the others.

    >>> budget = Budget(burst=2, per_second=10, now=5.0)
    >>> [budget.admit(now=5.0) for _ in range(4)]
    [True, True, False, False]
    >>> budget.admit(now=5.2), budget.take_refused(), budget.take_refused()
    (True, 2, 0)
    """

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = burst
        self._counted_at = now
        self._refused = 0

    def admit(self, now: float) -> bool:
        """Return True if there is room for one more unit; otherwise it is counted as refused."""
        passed = max(0.0, now - self._counted_at)
        self._counted_at = max(now, self._counted_at)
        self._left = min(self._burst, self._left + passed * self._per_second)
        if self._left < 1:
            self._refused += 1
            return False
        self._left -= 1
        return True

    def take_refused(self) -> int:
        """Return how many units were refused since the last call."""
        refused, self._refused = self._refused, 0
        return refused
