"""How much of what waits is sent to one connection."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from semantik_realtime.core.event import Event, StateChange

EDGE = 10
"""Of the events without state, so many of the first and of the last survive."""


class Limits(msgspec.Struct, frozen=True):
    """When a connection counts as slow."""

    conflate_above_bytes: int = 64 * 1024
    evict_above_bytes: int = 1024 * 1024
    stall_seconds: float = 30.0


class Write(StrEnum):
    """How to write what waits."""

    WHOLE = "whole"
    CONFLATED = "conflated"
    EVICT = "evict"


def plan_write(waiting_bytes: int, limits: Limits) -> Write:
    """Choose by the bytes that wait for the connection.

    >>> plan_write(70_000, Limits())
    <Write.CONFLATED: 'conflated'>
    """
    if waiting_bytes > limits.evict_above_bytes:
        return Write.EVICT
    if waiting_bytes > limits.conflate_above_bytes:
        return Write.CONFLATED
    return Write.WHOLE


def conflate(events: Sequence[Event]) -> list[Event]:
    """Leave out what later events supersede, in order.

    Kept: the last event with a state of each key, every terminal event, and
    of the events without a state the first and the last few. Folding the
    result gives the state that folding all of ``events`` gives.
    """
    keep: set[int] = set()
    last_of_key: dict[str, int] = {}
    plain: list[int] = []
    for index, event in enumerate(events):
        head = event.head()
        if head.terminal:
            keep.add(index)
        if head.change is StateChange.KEEP:
            plain.append(index)
        else:
            last_of_key[head.key] = index
    keep.update(last_of_key.values())
    keep.update(plain[:EDGE])
    keep.update(plain[-EDGE:])
    return [events[index] for index in sorted(keep)]
