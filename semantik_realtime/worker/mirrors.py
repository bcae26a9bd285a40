"""What is mirrored of a job, beside its life."""

from __future__ import annotations

import msgspec


class Mirrors(msgspec.Struct, frozen=True):
    """The mirrors of a job."""

    updates: bool = True
    """Whether ``update_state`` is reported."""
    tqdm: bool = True
    """Whether tqdm's bars are."""
    log_level: int | None = None
    """The lowest level of the log records that are events; None: none is."""
