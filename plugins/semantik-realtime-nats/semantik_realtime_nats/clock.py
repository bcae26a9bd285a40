"""The server's clock, as a process estimates it between two measurements. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable

_BOOT_TIME = getattr(time, "CLOCK_BOOTTIME", None)


def read_steady_clock() -> float:
    """Return seconds of a clock that nobody sets; on Linux it goes on while the host sleeps."""
    return time.monotonic() if _BOOT_TIME is None else time.clock_gettime(_BOOT_TIME)


class ServerClock:
    """The last measurement of the server's clock, continued by a clock that nobody sets.

    The host's own time of day has no part in it: a host whose clock is set, by
    a person or by a service, must not call a topic expired that lives.

    >>> steady = iter([100.0, 102.0, 110.0, 110.0])
    >>> clock = ServerClock(lambda: next(steady))
    >>> clock.measured(5000.0, sent_at=clock.read())
    >>> clock.now()
    5009.0
    >>> clock.age_seconds
    8.0
    """

    def __init__(self, read: Callable[[], float] = read_steady_clock) -> None:
        self.read = read
        """The steady clock, in seconds from any moment."""
        # The difference between the server's clock and the steady one.
        self._ahead_seconds = 0.0
        # When the last reply with the server's time arrived, by the steady clock.
        self._measured_at = float("-inf")

    @property
    def age_seconds(self) -> float:
        """How old the measurement is; infinite before the first one."""
        return self.read() - self._measured_at

    def measured(self, server_time: float, sent_at: float) -> None:
        """Note the server's time in a reply that has just arrived.

        Args:
            server_time: in seconds since 1970; read at some moment between the other two.
            sent_at: when the request was sent, by the steady clock.
        """
        self._measured_at = self.read()
        self._ahead_seconds = server_time - (sent_at + self._measured_at) / 2

    def now(self) -> float:
        """Return the server's time, in seconds since 1970."""
        return self.read() + self._ahead_seconds
