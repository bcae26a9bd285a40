"""What a connection gets that reads more slowly than events arrive."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from semantik_realtime.core.event import Event, StateChange
from semantik_realtime.core.limits import (
    CONFLATE_ABOVE_BYTES,
    EVICT_ABOVE_BYTES,
    PIECE_BYTES,
    SLOW_WRITE_SECONDS,
    STALL_SECONDS,
)

EDGE = 10
"""Conflation keeps this many of the first, and of the last, events without a state."""


class Limits(msgspec.Struct, frozen=True):
    """What happens to a connection that is slow."""

    conflate_above_bytes: int = CONFLATE_ABOVE_BYTES
    evict_above_bytes: int = EVICT_ABOVE_BYTES
    stall_seconds: float = STALL_SECONDS


class Write(StrEnum):
    """How to write the unsent events of a connection."""

    WHOLE = "whole"
    """All of them, in pieces."""
    CONFLATED = "conflated"
    """Those that `conflate` keeps."""
    EVICT = "evict"
    """None: close the connection."""


def plan_write(unsent_bytes: int, limits: Limits, *, is_slow: bool) -> Write:
    """Return how to write events of ``unsent_bytes`` bytes; a limit itself is still allowed.

    Only a slow connection gets fewer events, or is closed: what a backend
    delivers at once after an outage is no sign of a client that reads slowly.

    >>> plan_write(70_000, Limits(), is_slow=True), plan_write(70_000, Limits(), is_slow=False)
    (<Write.CONFLATED: 'conflated'>, <Write.WHOLE: 'whole'>)
    """
    if not is_slow or unsent_bytes <= limits.conflate_above_bytes:
        return Write.WHOLE
    return Write.EVICT if unsent_bytes > limits.evict_above_bytes else Write.CONFLATED


def is_slow_write(waited_seconds: float, frame_bytes: int) -> bool:
    """Return True if a client is slow whose socket has not taken a frame for so long.

    >>> is_slow_write(0.3, 1000), is_slow_write(0.3, 10 * PIECE_BYTES)
    (True, False)
    """
    return waited_seconds > SLOW_WRITE_SECONDS * max(1.0, frame_bytes / PIECE_BYTES)


def conflate(events: Sequence[Event]) -> list[Event]:
    """Return ``events``, in order, without those that later ones supersede.

    It keeps the last event with a state of each key, every terminal event, and
    of the events without a state the first and the last `EDGE`. Folding the
    result gives the same states as folding all of ``events``.

    >>> first = Event(1, 0, b'{"offset":1,"key":"a","state":{"n":1}}')
    >>> second = Event(2, 0, b'{"offset":2,"key":"a","state":{"n":2}}')
    >>> [event.offset for event in conflate([first, second])]
    [2]
    """
    keep: set[int] = set()
    last_of_key: dict[str, int] = {}
    stateless: list[int] = []
    for index, event in enumerate(events):
        head = event.head()
        if head.terminal:
            keep.add(index)
        if head.change is StateChange.KEEP:
            stateless.append(index)
        else:
            last_of_key[head.key] = index
    keep.update(last_of_key.values())
    keep.update(stateless[:EDGE])
    keep.update(stateless[-EDGE:])
    return [events[index] for index in sorted(keep)]
