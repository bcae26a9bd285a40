"""What wakes the emitter's thread: at once, or together with others in a busy process."""

from __future__ import annotations

import time

from semantik_realtime.core.pacing import CallPacer
from semantik_realtime.native_threads import make_event

LINGER_SECONDS = 0.1
"""Longest time that a draft waits for others, and the least time between the calls of a busy
process."""
BURST_CALLS = 10
"""Calls that are made without waiting: a process that runs a task now and then is not busy."""


class Wake:
    """An event that one thread waits for and any thread sets.

    In a process that makes many calls the thread does not wake at once for what
    can wait: a short task makes two drafts, and each call costs more than both.
    """

    def __init__(self) -> None:
        self._pacer = CallPacer(BURST_CALLS, LINGER_SECONDS)
        self._event = make_event()
        # Whether something came that cannot wait. `set` sets it before it looks whether the
        # thread lingers; the thread looks at it after it has said that it does. So one sees the
        # other.
        self._is_urgent = False
        self._is_lingering = False
        self._urgent = make_event()

    def set(self, can_wait: bool = False) -> None:
        """Wake the thread; if it ``can_wait``, within `LINGER_SECONDS`."""
        if not can_wait:
            self._is_urgent = True
            if self._is_lingering:
                self._urgent.set()
        if not self._event.is_set():
            self._event.set()

    def is_set(self) -> bool:
        """Return True if `set` was called since `clear`."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds: first until a call may be made, then for `set`.

        The first wait is not for the event, so that nothing that can wait ends it.
        """
        seconds = self._pacer.wait_seconds(time.monotonic())
        if seconds > 0:
            if timeout is not None:
                seconds = min(seconds, timeout)
                timeout -= seconds
            self._is_lingering = True
            if not self._is_urgent:
                self._urgent.wait(seconds)
            self._is_lingering = False
            self._urgent.clear()
        return self._event.wait(timeout)

    def clear(self) -> None:
        """Wait again for what comes from now on."""
        self._is_urgent = False
        self._event.clear()

    def called(self) -> None:
        """Count a call to the backend."""
        self._pacer.called(time.monotonic())
