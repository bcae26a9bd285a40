"""Which drafts of a job may still be appended.

The rule is stated here once for engines written in Python; ``append.lua``
states it again for Redis, and the contract suite holds both to it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Standing(msgspec.Struct, frozen=True):
    """Where a job stands: its newest attempt (0: queued), and whether that has ended."""

    attempt: int = 0
    ended: bool = False


class Refusal(StrEnum):
    """Why a draft is not appended."""

    STALE = "stale"
    CLOSED = "closed"


def judge(standing: Standing, attempt: int | None, terminal: bool) -> Standing | Refusal:
    """The job's standing after a draft, or why the draft is refused.

    >>> judge(Standing(), 0, False)
    Standing(attempt=0, ended=False)
    >>> judge(Standing(2), 1, True)
    <Refusal.STALE: 'stale'>
    >>> judge(Standing(1, ended=True), 1, False)
    <Refusal.CLOSED: 'closed'>
    >>> judge(Standing(1, ended=True), 2, False)
    Standing(attempt=2, ended=False)

    An attempt of None means the newest one, whichever that is.
    """
    if attempt is None:
        attempt = standing.attempt
    if attempt < standing.attempt:
        return Refusal.STALE
    if attempt == standing.attempt and standing.ended:
        return Refusal.CLOSED
    return Standing(attempt, terminal)
