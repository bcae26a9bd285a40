"""The frames of the native wire, built from bytes that are already JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.resume import Reason

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def encode(frame: Mapping[str, Any]) -> str:
    """Return a frame without events, as JSON."""
    return _encode(frame).decode()


def decode(text: str | bytes) -> dict[str, Any] | None:
    """Return a client's frame, or None if it is not a JSON object with an ``op``."""
    try:
        frame = _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if isinstance(frame, dict) and isinstance(frame.get("op"), str):
        return frame
    return None


def topic_events(
    topic: str, prev: int, cursor: Cursor, events: Sequence[Event], conflated: int = 0
) -> bytes:
    """Return one topic's member of an ``events`` frame.

    ``prev`` is the offset before the events, ``cursor`` the position after
    them, and ``conflated`` the number of events that were left out.

    >>> topic_events("job:1", 4, Cursor("e", 5, 1), [Event(5, 1, b'{"offset":5}')])
    b'"job:1":{"prev":4,"offset":5,"cursor":"e.5.00000001","events":[{"offset":5}]}'
    """
    note = b'"conflated":%d,' % conflated if conflated else b""
    return b'"%b":{"prev":%d,"offset":%d,"cursor":"%b",%b"events":[%b]}' % (
        topic.encode(),
        prev,
        cursor.offset,
        str(cursor).encode(),
        note,
        b",".join([event.json for event in events]),
    )


def events_frame(members: Iterable[bytes]) -> str:
    """Return an ``events`` frame of one or more topics."""
    return (b'{"op":"events","topics":{%b}}' % b",".join(members)).decode()


def replay_frame(topic: str, prev: int, cursor: Cursor, events: Sequence[Event]) -> str:
    """Return a ``sync`` that continues from the client's cursor, at the offset ``prev``."""
    return (
        b'{"op":"sync","topic":"%b","mode":"replay","prev":%d,"offset":%d,"cursor":"%b",'
        b'"events":[%b]}'
        % (
            topic.encode(),
            prev,
            cursor.offset,
            str(cursor).encode(),
            b",".join([event.json for event in events]),
        )
    ).decode()


def snapshot_frame(
    topic: str,
    reason: Reason,
    cursor: Cursor | None,
    states: Mapping[str, bytes],
    history: Sequence[Event] = (),
) -> str:
    """Return a ``sync`` that replaces the client's states; ``states`` are JSON objects.

    Without a cursor (the host's own record) the client starts at offset 0, so
    that it applies every event of the log.
    """
    members = _members(states)
    return (
        b'{"op":"sync","topic":"%b","mode":"snapshot","reason":"%b","offset":%d,"cursor":%b,'
        b'"states":{%b},"events":[%b]}'
        % (
            topic.encode(),
            reason.encode(),
            cursor.offset if cursor else 0,
            b'"%b"' % str(cursor).encode() if cursor else b"null",
            members,
            b",".join([event.json for event in history]),
        )
    ).decode()


def provisional_frame(topic: str, epoch: str, source: str, states: Mapping[str, bytes]) -> str:
    """Return a ``provisional`` frame: states that are known while the backend is away.

    >>> provisional_frame("job:1", "m:0", "recall", {"1": b'{"status":"running"}'})
    '{"op":"provisional","topic":"job:1","epoch":"m:0","source":"recall","states":{"1":{"status":"running"}}}'
    """
    return (
        b'{"op":"provisional","topic":"%b","epoch":"%b","source":"%b","states":{%b}}'
        % (topic.encode(), epoch.encode(), source.encode(), _members(states))
    ).decode()


def _members(values: Mapping[str, bytes]) -> bytes:
    return b",".join([b"%b:%b" % (_encode(name), value) for name, value in values.items()])


def tops_frame(tops: Mapping[str, Cursor]) -> str:
    """Return a ``tops`` frame: the connection's position in each of its topics."""
    return encode(
        {
            "op": "tops",
            "topics": {
                topic: {"offset": cursor.offset, "cursor": str(cursor)}
                for topic, cursor in tops.items()
            },
        }
    )
