"""Which events were passed to the application, so that none is passed twice (R8)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from semantik_realtime.core.limits import MAX_HISTORY

_encode = json.JSONEncoder(separators=(",", ":")).encode
"""Not msgspec's: a text may have half of a surrogate pair, which has no UTF-8."""

DecodedEvent = dict[str, Any]


class ShownEvents:
    """The events of one topic that a reader has passed on; ``shown.js`` is the same for browsers.

    Offsets cannot tell: a log that begins again, and one that a failover has
    rewritten, use them again for other events, and the same event may have
    another one. So two events are the same if all members but the offset are.

    >>> shown = ShownEvents()
    >>> first, second = ({"offset": n, "type": "log", "data": {"n": n}} for n in (1, 2))
    >>> shown.add_batch([first]) == [first]
    True
    >>> shown.add_history([first, second], is_rewritten=False) == [second]
    True
    """

    def __init__(self) -> None:
        # Hashes of the events that were passed on, the newest last.
        self._marks: deque[bytes] = deque(maxlen=MAX_HISTORY)
        # Those that the history of a rewritten log does not have: their producer may send them
        # again, at another offset. Each is removed when that happens.
        self._lost: set[bytes] = set()

    def add_batch(self, events: Sequence[DecodedEvent]) -> list[DecodedEvent]:
        """Return which events of a batch to pass on: all but lost ones that come again."""
        fresh = []
        for event in events:
            mark = _mark_of(event)
            if mark in self._lost:
                self._lost.remove(mark)
            else:
                fresh.append(event)
            self._marks.append(mark)
        return fresh

    def add_history(
        self, history: Sequence[DecodedEvent], *, is_rewritten: bool
    ) -> list[DecodedEvent]:
        """Return which events of a snapshot's history to pass on: those that were not before.

        In the same log, what comes before the first one that was passed on is
        older than it, and is not passed on after it.

        Args:
            history: the events, oldest first.
            is_rewritten: whether the log is another one than that of the events before.
        """
        known = set(self._marks)
        marks = [_mark_of(event) for event in history]
        first = -1
        if not is_rewritten:
            first = next((at for at, mark in enumerate(marks) if mark in known), -1)
        fresh = [at for at, mark in enumerate(marks) if at > first and mark not in known]
        if is_rewritten:
            self._lost = known.difference(marks)
        self._marks += [marks[at] for at in fresh]
        return [history[at] for at in fresh]


def _mark_of(event: Mapping[str, Any]) -> bytes:
    rest = {name: value for name, value in event.items() if name != "offset"}
    return blake2b(_encode(rest).encode(), digest_size=8).digest()
