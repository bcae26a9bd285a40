"""A backend in memory that a replica replaces, which lost the last events."""

from __future__ import annotations

import copy

from failing_backend import FailingBackend

from semantik_realtime.core.event import Cursor

TOPIC = "job:1"


class Replica(FailingBackend):
    """A backend in memory that can be replaced by an earlier state of itself, in silence."""

    def remember(self) -> None:
        """Copy the topics, as a replica has them that will lag from now on."""
        with self._lock:
            self._copy = copy.deepcopy(self._logs)

    def promote(self) -> None:
        """Lose what was appended since `remember`. No connection breaks."""
        with self._lock:
            self._logs = copy.deepcopy(self._copy)

    def end(self) -> Cursor:
        return self._logs[TOPIC].cursor
