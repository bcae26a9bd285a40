"""Whose a topic is: which drafts another owner's topic refuses, and when it begins again.

``append.lua`` has the same rule for Redis; the contract suite tests both.
"""

from __future__ import annotations

from enum import StrEnum


class OwnerChange(StrEnum):
    """What a draft's owner means for its topic."""

    NONE = "none"
    """The topic's owner stays: the draft has the same one, or none."""
    FIRST = "first"
    """The topic has no events yet, and now belongs to the draft's owner."""
    BEGIN = "begin"
    """The topic has events and no owner. It begins again, in a new epoch, as the draft's owner's:
    the events before were not for that user."""
    FOREIGN = "foreign"
    """The topic belongs to another owner: the draft is refused."""


def check_owner(owner: str | None, offset: int, draft_owner: str | None) -> OwnerChange:
    """Return what a draft's owner means for its topic.

    Args:
        owner: the topic's owner; None: it has none.
        offset: of the topic's last event; 0: it has no events.
        draft_owner: the draft's owner; None: its writer does not know the owner.

    >>> check_owner("7", 3, "8").value, check_owner("7", 3, None).value
    ('foreign', 'none')
    >>> check_owner(None, 0, "7").value, check_owner(None, 3, "7").value
    ('first', 'begin')
    """
    if draft_owner is None or draft_owner == owner:
        return OwnerChange.NONE
    if owner is not None:
        return OwnerChange.FOREIGN
    return OwnerChange.BEGIN if offset else OwnerChange.FIRST
