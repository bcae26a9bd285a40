"""The frames of the native wire (docs/protocol.md). Events and states stay encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.resume import Reason

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def encode(frame: Mapping[str, Any]) -> str:
    """Encode a frame that has no events.

    >>> encode({"op": "pong"})
    '{"op":"pong"}'
    """
    return _encode(frame).decode()


def decode(text: str | bytes) -> dict[str, Any] | None:
    """Decode a client's frame. None if it is not a JSON object with a string ``op``.

    >>> decode('{"op":"ping"}'), decode("[1]")
    ({'op': 'ping'}, None)
    """
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
    """Encode one topic's member of an ``events`` frame.

    Args:
        topic: its name.
        prev: the offset that the first event follows.
        cursor: the position after the last event.
        events: the events that are sent.
        conflated: how many events were left out.

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
    """Join the results of `topic_events` to an ``events`` frame.

    >>> events_frame([b'"job:1":{}'])
    '{"op":"events","topics":{"job:1":{}}}'
    """
    return (b'{"op":"events","topics":{%b}}' % b",".join(members)).decode()


def replay_frame(topic: str, prev: Cursor, cursor: Cursor, events: Sequence[Event]) -> str:
    """Encode a ``sync`` with all events after ``prev``, the client's cursor."""
    return (
        b'{"op":"sync","topic":"%b","mode":"replay","prev":%d,"prev_cursor":"%b","offset":%d,'
        b'"cursor":"%b","events":[%b]}'
        % (
            topic.encode(),
            prev.offset,
            str(prev).encode(),
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
    """Encode a ``sync`` that replaces the client's states by ``states``, each in JSON.

    Without a cursor (the states are the host's record) the client continues
    from offset 0, so that it applies every event of a log that begins later.
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
    """Encode the states that a topic has while the backend is away, each in JSON.

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
    """Encode the position of a connection in each of its topics.

    >>> tops_frame({"job:1": Cursor("e", 5, 1)})
    '{"op":"tops","topics":{"job:1":{"offset":5,"cursor":"e.5.00000001"}}}'
    """
    return encode(
        {
            "op": "tops",
            "topics": {
                topic: {"offset": cursor.offset, "cursor": str(cursor)}
                for topic, cursor in tops.items()
            },
        }
    )
