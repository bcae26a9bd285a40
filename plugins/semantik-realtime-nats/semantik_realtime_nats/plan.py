"""What a writer plans to append, and within which limits. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from semantik_realtime.core.event import Receipt
from semantik_realtime.core.retention import Retention

from semantik_realtime_nats.records import LogHeader

Stale = Iterable[tuple[str | None, int | None]]
"""The job and attempt of each draft that begins an attempt and was refused earlier in the call."""


class Limits(msgspec.Struct, frozen=True):
    """What an append may not exceed, and how long a topic lives after it."""

    retention_events: int
    retention: Retention
    max_keys: int
    max_event_bytes: int
    own_job: str | None = None
    """The job whose own topic it is; None: it is a feed."""


class Plan(msgspec.Struct, frozen=True):
    """A message to append, and the receipts that are due when it is stored."""

    header: LogHeader
    payload: bytes | None
    """The encoded message; None: there is nothing to append."""
    receipts: list[Receipt]
    """Of the first drafts. The others did not fit; append them with the next message."""
