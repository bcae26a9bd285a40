"""Values that change faster than they are sent: read when their turn comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

from semantik_realtime.core.pacing import Pacer
from semantik_realtime.emitter.outcomes import EmitterStats

logger = logging.getLogger(__name__)

Source = Callable[[], None]
"""Called in the emitter's thread when its key is due: emits the newest value if it has changed."""


class ThrottledSources:
    """Calls each key's source at most once an interval; the last call is never left out.

    Any thread may `add`, one may `run`.
    """

    def __init__(self, stats: EmitterStats) -> None:
        # Due keys with their interval and source; `add` inserts, `run` removes. No lock: each
        # access is one operation of the dict, and a time limit may interrupt a task's thread
        # anywhere, also while it holds a lock.
        self._due: dict[Hashable, tuple[float, Source]] = {}
        self._pacer = Pacer()
        self._stats = stats

    def add(self, key: Hashable, interval_seconds: float, source: Source) -> None:
        """Call ``source`` when ``key`` is due; a key that is already due keeps its place."""
        self._due.setdefault(key, (interval_seconds, source))

    def run(self) -> float | None:
        """Call the sources that are due; return the seconds until the next one, if there is one."""
        if not self._due:
            return None
        now = time.monotonic()
        next_seconds: float | None = None
        for key in list(self._due):
            seconds = self._pacer.wait_seconds(key, now)
            if seconds > 0:
                next_seconds = seconds if next_seconds is None else min(next_seconds, seconds)
                continue
            # Before the call: a change from here on is for the next turn.
            interval_seconds, source = self._due.pop(key)
            self._pacer.sent(key, now, interval_seconds)
            try:
                source()
            except Exception:
                # The other sources that are due must still be called.
                logger.exception("emitter: source failed key=%r", key)
                self._stats.failures += 1
        return next_seconds
