"""The emitters of this process: restarted after a fork, closed at the end."""

from __future__ import annotations

import atexit
import weakref
from typing import TYPE_CHECKING

from semantik_realtime.forks import on_fork

if TYPE_CHECKING:
    from semantik_realtime.emitter.emitter import Emitter

# An emitter that nobody uses any more leaves by itself.
_emitters: weakref.WeakSet[Emitter] = weakref.WeakSet()


def add(emitter: Emitter) -> None:
    """Restart ``emitter`` after a fork, and close it at the end of the process."""
    _emitters.add(emitter)


def emitters() -> list[Emitter]:
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
