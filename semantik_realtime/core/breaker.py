"""Whether the backend is away, and who may find out if it is back."""

from __future__ import annotations


class CircuitBreaker:
    """What a process knows of one way to its backend.

    While the backend answers everyone may call. While it is away one caller
    in ``retry_seconds`` may, counted from the last failure: whoever probes
    more often keeps everybody else from paying for it.

    >>> way = CircuitBreaker(retry_seconds=5.0)
    >>> way.admits(now=0.0)
    True
    >>> way.failed(now=0.0)
    True
    >>> way.admits(now=4.9), way.admits(now=5.0), way.admits(now=5.1)
    (False, True, False)
    >>> way.answered()
    True
    >>> way.admits(now=5.2)
    True
    """

    def __init__(self, retry_seconds: float) -> None:
        self.is_away = False
        self._retry_seconds = retry_seconds
        self._retry_at = 0.0

    def admits(self, now: float) -> bool:
        """Whether a call may be made; while away, being admitted uses the turn up."""
        if not self.is_away:
            return True
        if now < self._retry_at:
            return False
        self._retry_at = now + self._retry_seconds
        return True

    def failed(self, now: float) -> bool:
        """A call failed; is that news?"""
        was_away, self.is_away = self.is_away, True
        self._retry_at = now + self._retry_seconds
        return not was_away

    def answered(self) -> bool:
        """A call was answered; is that news?"""
        was_away, self.is_away = self.is_away, False
        return was_away
