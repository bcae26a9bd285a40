"""Whether calls to the backend fail, and how often a failing call may be tried."""

from __future__ import annotations


class CircuitBreaker:
    """The state of one direction, reads or writes, of a process's backend.

    Closed while calls succeed: everybody may call. Open after a failure: one
    call in ``retry_seconds`` is admitted, counted from the last failure, so
    that not everybody pays for the same outage.

    No lock: an attribute is set in one step, and a task's thread may be
    interrupted anywhere by a time limit. Two threads that fail at the same
    moment may both be the first to open it.

    >>> breaker = CircuitBreaker(retry_seconds=5.0)
    >>> breaker.admits(now=0.0)
    True
    >>> breaker.failed(now=0.0)
    True
    >>> breaker.admits(now=4.9), breaker.admits(now=5.0), breaker.admits(now=5.1)
    (False, True, False)
    >>> breaker.succeeded()
    >>> breaker.admits(now=5.2)
    True
    """

    def __init__(self, retry_seconds: float) -> None:
        self.is_open = False
        """Whether the last call failed."""
        self._retry_seconds = retry_seconds
        # When the next call is admitted, on the caller's clock; only used while open.
        self._retry_at = 0.0

    def admits(self, now: float) -> bool:
        """Return True if a call may be made. While open this uses up the turn."""
        if not self.is_open:
            return True
        if now < self._retry_at:
            return False
        self._retry_at = now + self._retry_seconds
        return True

    def failed(self, now: float) -> bool:
        """A call failed: open. Return True if it was closed before."""
        was_closed, self.is_open = not self.is_open, True
        self._retry_at = now + self._retry_seconds
        return was_closed

    def succeeded(self) -> None:
        """A call succeeded: close."""
        self.is_open = False
