"""How long the emitter's thread lets drafts that can wait gather before it sends them."""

from __future__ import annotations

import threading
import time

from semantik_realtime.core.pacing import CallPacer

LINGER_SECONDS = 0.02
"""Longest time that a draft waits for others, and the least time between the calls of a busy
process."""
BURST_CALLS = 10
"""Calls that are made without waiting: a process that runs a task now and then is not busy."""


class Linger:
    """Lets drafts that can wait leave together in a process that makes many calls.

    A short task makes two drafts, and each call costs more than both of them.
    The emitter's thread calls `wait` and `called`, any thread `end`.
    """

    def __init__(self) -> None:
        self._pacer = CallPacer(BURST_CALLS, LINGER_SECONDS)
        # Whether something came that cannot wait. Set by `end` before it looks whether the thread
        # waits; the thread announces that it waits before it looks at this. So one sees the other.
        self._is_urgent = False
        self._is_waiting = False
        self._urgent = threading.Event()

    def wait(self) -> None:
        """Wait until a call may be made, or until `end`. For the emitter's thread."""
        seconds = 0.0 if self._is_urgent else self._pacer.wait_seconds(time.monotonic())
        if seconds > 0:
            self._is_waiting = True
            if not self._is_urgent:
                self._urgent.wait(seconds)
            self._is_waiting = False
            self._urgent.clear()
        self._is_urgent = False

    def called(self) -> None:
        """Record a call to the backend."""
        self._pacer.called(time.monotonic())

    def end(self) -> None:
        """Let what waits leave now."""
        self._is_urgent = True
        if self._is_waiting:
            self._urgent.set()
