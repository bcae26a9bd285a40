"""The emitters of this process: restarted after a fork, closed at the end."""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol

from semantik_realtime.emitter.outcomes import EmitterStats
from semantik_realtime.forks import on_fork


class Registered(Protocol):
    """An emitter, as the process and its metrics see it."""

    stats: EmitterStats

    @property
    def waiting(self) -> int:
        """How many drafts wait."""

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes their bodies have."""

    def restart_in_child(self) -> None:
        """Begin anew after a fork."""

    def close(self) -> bool:
        """Flush, and end the thread."""


# An emitter that nobody uses any more leaves by itself.
_emitters: weakref.WeakSet[Registered] = weakref.WeakSet()


def add(emitter: Registered) -> None:
    """Restart ``emitter`` after a fork, and close it at the end of the process."""
    _emitters.add(emitter)


def emitters() -> list[Registered]:
    """Return the emitters of this process."""
    return list(_emitters)


def _after_fork_in_child() -> None:
    for emitter in emitters():
        emitter.restart_in_child()


def _close_all() -> None:
    for emitter in emitters():
        emitter.close()


on_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
