"""What a subscriber gets first: the events since its cursor, or a snapshot."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.limits import MAX_REPLAY


class Reason(StrEnum):
    """Why a subscriber gets a snapshot."""

    NEW = "new"
    TRIMMED = "trimmed"
    EPOCH = "epoch"
    DIVERGED = "diverged"
    AHEAD = "ahead"
    TOO_FAR = "too_far"
    RECALLED = "recalled"


class LogInfo(msgspec.Struct, frozen=True):
    """The extent of a log: its end, and the oldest offset kept (``offset + 1`` when none is)."""

    epoch: str
    offset: int
    chain: int
    first: int


def plan_sync(
    asked: Cursor | None, log: LogInfo, chain_there: int | None, limit: int = MAX_REPLAY
) -> Reason | None:
    """Choose between a replay (None) and a snapshot (the reason).

    ``chain_there`` is the log's chain at the asked offset, None when that
    entry is no longer kept. Offsets are dense.

    Never raises: a cursor comes from the network, and every wrong one has
    the same safe answer, a snapshot.

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
