"""How a subscription begins: with the events since the client's cursor, or with a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.limits import MAX_REPLAY


class Reason(StrEnum):
    """Why a client gets a snapshot."""

    NEW = "new"
    """It has no cursor."""
    TRIMMED = "trimmed"
    """The log no longer keeps all events since the cursor, or cannot check the cursor's chain."""
    EPOCH = "epoch"
    """The cursor is of another log: this one began later, or the cursor is unreadable."""
    DIVERGED = "diverged"
    """The log has other events up to the cursor: a failover rewrote the history."""
    AHEAD = "ahead"
    """The cursor is after the end of the log: a failover lost events."""
    TOO_FAR = "too_far"
    """More than `MAX_REPLAY` events follow the cursor, or more bytes than one answer may have."""
    RECALLED = "recalled"
    """The backend does not know the topic, and the states are the host's record."""


class LogInfo(msgspec.Struct, frozen=True):
    """The end of a log and its oldest entry."""

    epoch: str
    offset: int
    """Of the newest event ever appended; 0 before the first."""
    chain: int
    """At ``offset``."""
    first: int
    """The offset of the oldest event that is kept; ``offset + 1`` if none is."""


def plan_sync(
    asked: Cursor | None, log: LogInfo, chain_there: int | None, limit: int = MAX_REPLAY
) -> Reason | None:
    """Return None for a replay of the events since a cursor, or the reason for a snapshot.

    Never raises: a cursor comes from the network, and a snapshot is right for
    every wrong one.

    Args:
        asked: the client's cursor, if it has one.
        log: the log, whose offsets are dense.
        chain_there: the log's chain at the offset of ``asked``; None if that
            entry is no longer kept.
        limit: most events of a replay.

    >>> log = LogInfo("e", 20, 0xabc, first=11)
    >>> plan_sync(Cursor("e", 17, 0x123), log, 0x123)
    >>> plan_sync(Cursor("e", 17, 0x666), log, 0x123)
    <Reason.DIVERGED: 'diverged'>
    >>> plan_sync(Cursor("e", 5, 0x123), log, None)
    <Reason.TRIMMED: 'trimmed'>
    """
    if asked is None:
        return Reason.NEW
    if asked.epoch != log.epoch:
        return Reason.EPOCH
    if asked.offset > log.offset:
        return Reason.AHEAD
    if asked.offset < log.first - 1:
        return Reason.TRIMMED
    if log.offset - asked.offset > limit:
        return Reason.TOO_FAR
    if asked.offset == log.offset:
        chain_there = log.chain
    elif asked.offset == 0:
        chain_there = 0
    if chain_there is None:
        return Reason.TRIMMED
    if chain_there != asked.chain:
        return Reason.DIVERGED
    return None


def check_replay(asked: Cursor, replay: Sequence[Event], end: Cursor) -> Reason | None:
    """Return None if ``replay`` has every event after ``asked``, or the reason for a snapshot.

    For a log whose offsets are dense: it may have been cut to the bytes that
    an answer may have, or an event inside it may have been deleted.

    >>> replay = [Event(3, 0, b""), Event(5, 0, b"")]
    >>> check_replay(Cursor("e", 2, 0), replay, Cursor("e", 5, 0))
    <Reason.TRIMMED: 'trimmed'>
    """
    if len(replay) == end.offset - asked.offset:
        return None
    reached = replay[-1].offset if replay else asked.offset
    return Reason.TOO_FAR if reached - asked.offset == len(replay) else Reason.TRIMMED


def plan_page(asked: Cursor, end: Cursor | None, there: Event | None) -> Reason | None:
    """Return None if a page after ``asked`` continues its history, or why it does not.

    Args:
        asked: the position of a reader; without an epoch, only its offset is known.
        end: of the log; None: the backend does not know the topic.
        there: the log's event at the offset of ``asked``; None if that is not kept.

    >>> plan_page(Cursor("e", 12, 7), Cursor("e", 13, 9), Event(12, 8, b""))
    <Reason.DIVERGED: 'diverged'>
    """
    if end is None:
        return Reason.EPOCH if asked.epoch or asked.offset else None
    if asked.epoch and asked.epoch != end.epoch:
        return Reason.EPOCH
    if asked.offset > end.offset:
        return Reason.AHEAD
    if not asked.epoch:
        return None
    chain = 0 if asked.offset == 0 else None if there is None else there.chain
    if asked.offset == end.offset:
        chain = end.chain
    if chain is None:
        return Reason.TRIMMED
    return None if chain == asked.chain else Reason.DIVERGED


def take_bytes(events: Iterable[Event], max_bytes: int) -> list[Event]:
    """Return the first of ``events``, as many as together have at most ``max_bytes``.

    The very first one is always among them, so that a reader who asks for the
    rest gets on. Reads no more than one event too many.

    >>> log = [Event(1, 0, b"x" * 60), Event(2, 0, b"x" * 60), Event(3, 0, b"x" * 60)]
    >>> [event.offset for event in take_bytes(log, 120)]
    [1, 2]
    >>> [event.offset for event in take_bytes(log, 10)]
    [1]
    """
    taken: list[Event] = []
    size = 0
    for event in events:
        size += len(event.json)
        if size > max_bytes and taken:
            break
        taken.append(event)
    return taken
