"""A message as the stream has it, and the times of JetStream. Pure."""

from __future__ import annotations

from datetime import datetime

import msgspec

from semantik_realtime_nats.client import Message


class StoredMessage(msgspec.Struct, frozen=True):
    """A message of the stream. ``stored_at`` is the server's time, in seconds since 1970."""

    subject: str
    seq: int
    stored_at: float
    data: bytes


def parse_time(text: str) -> float:
    """Return the seconds since 1970 of a time in JetStream's format.

    >>> parse_time("1970-01-01T00:00:01.5Z")
    1.5
    """
    return datetime.fromisoformat(text).timestamp()


def to_stored(message: Message) -> StoredMessage:
    headers = message.headers
    return StoredMessage(
        headers["Nats-Subject"],
        int(headers["Nats-Sequence"]),
        parse_time(headers["Nats-Time-Stamp"]),
        message.data,
    )
