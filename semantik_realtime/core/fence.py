"""Which drafts of a job may still be appended.

The rule is stated here once for engines written in Python; ``append.lua``
states it again for Redis, and the contract suite holds both to it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class AttemptState(msgspec.Struct, frozen=True):
    """Where a job stands: its newest attempt (0: queued), and whether that has ended."""

    attempt: int = 0
    ended: bool = False


class Refusal(StrEnum):
    """Why a draft is not appended."""

    STALE = "stale"
    CLOSED = "closed"


def check_fence(state: AttemptState, attempt: int | None, terminal: bool) -> AttemptState | Refusal:
    """The job's state after a draft, or why the draft is refused.

    >>> check_fence(AttemptState(), 0, False)
    AttemptState(attempt=0, ended=False)
    >>> check_fence(AttemptState(2), 1, True)
    <Refusal.STALE: 'stale'>
    >>> check_fence(AttemptState(1, ended=True), 1, False)
    <Refusal.CLOSED: 'closed'>
    >>> check_fence(AttemptState(1, ended=True), 2, False)
    AttemptState(attempt=2, ended=False)

    An attempt of None means the newest one, whichever that is.
    """
    if attempt is None:
        attempt = state.attempt
    if attempt < state.attempt:
        return Refusal.STALE
    if attempt == state.attempt and state.ended:
        return Refusal.CLOSED
    return AttemptState(attempt, terminal)
