"""Which drafts of a job may still be appended.

``append.lua`` has the same rule for Redis; the contract suite tests both.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class AttemptState(msgspec.Struct, frozen=True):
    """The newest attempt of a job (0: queued), and whether it has ended."""

    attempt: int = 0
    ended: bool = False


class Refusal(StrEnum):
    """Why a draft is not appended."""

    STALE = "stale"
    """A newer attempt has begun."""
    CLOSED = "closed"
    """The newest attempt has ended."""


def check_fence(
    state: AttemptState, attempt: int | None, terminal: bool, begins: bool = False
) -> AttemptState | Refusal:
    """Return the job's state after a draft, or why the draft is refused.

    Args:
        state: the job's state before.
        attempt: the draft's attempt; None means the newest one.
        terminal: whether the draft ends the attempt.
        begins: whether it is the attempt's first draft. Another attempt may have its number.

    >>> check_fence(AttemptState(), 0, False)
    AttemptState(attempt=0, ended=False)
    >>> check_fence(AttemptState(2), 1, True)
    <Refusal.STALE: 'stale'>
    >>> check_fence(AttemptState(1, ended=True), 1, False)
    <Refusal.CLOSED: 'closed'>
    >>> check_fence(AttemptState(1, ended=True), 2, False)
    AttemptState(attempt=2, ended=False)
    >>> check_fence(AttemptState(1), 1, False, begins=True)
    <Refusal.STALE: 'stale'>
    """
    if attempt is None:
        attempt = state.attempt
    if attempt < state.attempt or (begins and attempt == state.attempt):
        return Refusal.STALE
    if attempt == state.attempt and state.ended:
        return Refusal.CLOSED
    return AttemptState(attempt, terminal)
