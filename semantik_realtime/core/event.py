"""Events, drafts and cursors: the values everything else passes around."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from semantik_realtime.core.limits import MAX_EVENT_BYTES
from semantik_realtime.core.topic import check_key, check_type
from semantik_realtime.errors import EventError, EventTooBig

CHAIN_FACTOR = 1_000_003
CHAIN_MODULUS = 2**32

_encode = msgspec.json.Encoder().encode
_CURSOR = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,16})\.([0-9a-f]{8})")


class Cursor(msgspec.Struct, frozen=True):
    """A place in a topic's log: after the event at ``offset``.

    ``chain`` is the rolling hash of the history up to and with that event.

    >>> str(Cursor("k3x9", 17, 0x9f86d081))
    'k3x9.17.9f86d081'
    """

    epoch: str
    offset: int
    chain: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}.{self.chain:08x}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read what a client sent.

        Never raises: anything unreadable becomes a cursor of no epoch, which
        every log answers with a snapshot.

        >>> Cursor.parse("k3x9.17.9f86d081").offset
        17
        >>> Cursor.parse("rubbish").epoch
        ''
        """
        match = _CURSOR.fullmatch(text)
        if match is None:
            return cls("", 0, 0)
        return cls(match[1], int(match[2]), int(match[3], 16))


class Event(msgspec.Struct, frozen=True, gc=False):
    """One entry of a log. ``json`` is the event as every client gets it, offset included."""

    offset: int
    chain: int
    json: bytes

    def head(self) -> Head:
        """The members a server decides by, decoded from ``json``."""
        return _decode_head(self.json)


class StateChange(StrEnum):
    """What an event does to the state of its key."""

    KEEP = ""
    SET = "set"
    DROP = "drop"


class Head(msgspec.Struct, frozen=True):
    """What a server needs to know of an event; the rest stays bytes.

    ``state`` is JSON as it came, ``null`` included; `change` tells them apart.
    """

    offset: int = 0
    type: str = ""
    time: str = ""
    key: str = ""
    # Not `Raw | None`: msgspec would then take null and refuse everything else.
    state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw = msgspec.Raw(b"{}")
    terminal: bool = False

    @property
    def change(self) -> StateChange:
        """What the event does to the state of its key; without a key nothing."""
        if not self.key or self.state is msgspec.UNSET:
            return StateChange.KEEP
        return StateChange.DROP if self.state == _NULL else StateChange.SET


_NULL = msgspec.Raw(b"null")
_decode_head = msgspec.json.Decoder(Head).decode


class Draft(msgspec.Struct, kw_only=True, eq=False):
    """An event for one topic that is not yet appended.

    ``producer`` and ``number`` make sending it twice harmless: the emitter
    gives them when it takes the draft in, and they stay. ``job`` and
    ``attempt`` let the log refuse what an outdated attempt still sends
    (attempt None: the newest is meant). ``body`` is the encoded event without
    its offset.
    """

    topic: str
    type: str
    key: str
    body: bytes
    change: StateChange = StateChange.KEEP
    terminal: bool = False
    producer: str = ""
    number: int = 0
    job: str | None = None
    attempt: int | None = None
    owner: str | None = None

    @property
    def digest(self) -> int:
        """crc32 of the body: what the chain is made of."""
        return zlib.crc32(self.body)


class Outcome(StrEnum):
    """What became of a draft. Only the first two left an event in the log.

    WAITING is no backend's answer: the draft is in this process's spool, and
    will be appended when the backend is back.
    """

    APPENDED = "appended"
    DUPLICATE = "duplicate"
    STALE = "stale"
    CLOSED = "closed"
    TOO_BIG = "too_big"
    TOO_MANY_KEYS = "too_many_keys"
    WAITING = "waiting"


class Receipt(msgspec.Struct, frozen=True):
    """A backend's answer to one draft.

    ``cursor`` is where the event stands, for APPENDED and, as long as the log
    still keeps it, for DUPLICATE.
    """

    outcome: Outcome
    cursor: Cursor | None = None


def link(chain: int, digest: int) -> int:
    """The chain after one more event.

    >>> link(0, 5)
    5
    >>> link(5, 1)
    5000016
    """
    return (chain * CHAIN_FACTOR + digest) % CHAIN_MODULUS


def encode_body(
    type: str,
    time: str,
    key: str,
    *,
    state: Mapping[str, Any] | msgspec.UnsetType | None = msgspec.UNSET,
    data: Mapping[str, Any] | None = None,
    terminal: bool = False,
    max_bytes: int = MAX_EVENT_BYTES,
) -> bytes:
    """Encode an event without its offset.

    >>> encode_body("note", "2026-01-01T00:00:00.000Z", "42", data={"n": 1})
    b'{"type":"note","time":"2026-01-01T00:00:00.000Z","key":"42","data":{"n":1}}'

    NaN and infinities become null, as JSON has neither.

    Raises:
        EventError: a member cannot be encoded.
        EventTooBig: the result is over ``max_bytes``.
    """
    event: dict[str, Any] = {"type": check_type(type), "time": time, "key": check_key(key)}
    if state is not msgspec.UNSET:
        event["state"] = state
    if data:
        event["data"] = data
    if terminal:
        event["terminal"] = True
    try:
        body = _encode(event)
    except (TypeError, ValueError, RecursionError, OverflowError, BufferError) as error:
        raise EventError(f"event {type} cannot be encoded: {error}") from error
    if len(body) > max_bytes:
        raise EventTooBig(f"event {type} has {len(body)} bytes, the limit is {max_bytes}")
    return body


def with_offset(body: bytes, offset: int) -> bytes:
    """The event as it is stored, published and framed.

    >>> with_offset(b'{"type":"note"}', 17)
    b'{"offset":17,"type":"note"}'
    """
    return b'{"offset":%d,%b' % (offset, body[1:])
