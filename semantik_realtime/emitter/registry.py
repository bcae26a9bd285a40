"""The emitters of this process: restarted after a fork, closed at the end."""

from __future__ import annotations

import atexit
import time
import weakref
from typing import Protocol

from semantik_realtime.emitter.outcomes import EmitterStats
from semantik_realtime.forks import on_fork


class Registered(Protocol):
    """An emitter, as the process and its metrics see it."""

    stats: EmitterStats
    is_closing: bool
    """Whether `close` was called since its thread was started."""

    @property
    def waiting(self) -> int:
        """How many drafts wait."""

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes their bodies have."""

    def restart_in_child(self) -> None:
        """Begin anew after a fork."""

    def close(self, timeout_seconds: float, *, while_failing: bool) -> bool:
        """Flush, and end the thread; without ``while_failing`` not if the backend fails."""


CLOSE_SECONDS = 2.0
"""For all emitters of a process that ends, if nothing else has begun its end."""
LEAST_SECONDS = 0.25
"""For a step of an end whose time is over: enough for a backend that answers."""


# An emitter that nobody uses any more leaves by itself.
_emitters: weakref.WeakSet[Registered] = weakref.WeakSet()
# When the steps by which this process ends have to be over, on the monotonic clock; None before
# the first one.
_end_at: float | None = None


def add(emitter: Registered) -> None:
    """Restart ``emitter`` after a fork, and close it at the end of the process."""
    _emitters.add(emitter)


def emitters() -> list[Registered]:
    """Return the emitters of this process."""
    return list(_emitters)


def seconds_to_end(seconds: float) -> float:
    """Return how long a step may take by which this process ends.

    The first step has ``seconds``, and all of them share these: the steps come one after the
    other, and each would wait for a backend that does not answer.
    """
    global _end_at
    if _end_at is None:
        _end_at = time.monotonic() + seconds
    return max(min(LEAST_SECONDS, seconds), _end_at - time.monotonic())


def go_on() -> None:
    """Note that this process does not end: a worker starts in it."""
    global _end_at
    _end_at = None


def _after_fork_in_child() -> None:
    go_on()
    for emitter in emitters():
        emitter.restart_in_child()


def _close_all() -> None:
    for emitter in emitters():
        # One that was closed has waited for a backend that fails.
        seconds = seconds_to_end(CLOSE_SECONDS)
        emitter.close(seconds, while_failing=not emitter.is_closing)


on_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
