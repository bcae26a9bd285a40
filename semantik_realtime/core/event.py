"""Events, drafts, receipts and cursors: the values that all other modules exchange."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from semantik_realtime.core.limits import MAX_DEPTH, MAX_EVENT_BYTES
from semantik_realtime.core.topic import check_key, check_type
from semantik_realtime.errors import EventError, EventTooBig

CHAIN_FACTOR = 1_000_003
"""The same in ``append.lua`` and in docs/protocol.md; see `link`."""
CHAIN_MODULUS = 2**32
_CHAIN_INVERSE = pow(CHAIN_FACTOR, -1, CHAIN_MODULUS)

_NOT_ENCODED = (
    TypeError, ValueError, RecursionError, OverflowError, BufferError, msgspec.MsgspecError
)  # fmt: skip
_encode = msgspec.json.Encoder().encode
_CURSOR = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,16})\.([0-9a-f]{8})")


class Cursor(msgspec.Struct, frozen=True, gc=False):
    """A position in a topic's log: after the event at ``offset`` (0: before the first).

    ``chain`` is the rolling hash of the history up to and including that event
    (`link`). It shows when two histories have the same offsets but other events.

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
        """Read a client's cursor.

        Never raises: an unreadable text becomes a cursor without an epoch, to
        which every log answers with a snapshot.

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
    """One entry of a log.

    ``json`` is the event as it is stored, published and sent to every client,
    with its offset. ``chain`` is the chain of the log including this event.
    """

    offset: int
    chain: int
    json: bytes

    def head(self) -> Head:
        """Decode from ``json`` the members that a server needs.

        Never raises, because one event must not stop the readers of a log: the
        head of an event that cannot be read has no type and changes nothing.
        """
        try:
            return _decode_head(self.json)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return Head()


class StateChange(StrEnum):
    """What an event does to the state of its key."""

    KEEP = ""
    """Nothing: the event has no state."""
    SET = "set"
    """It replaces the state."""
    DROP = "drop"
    """It deletes the key: its state is null."""


class Head(msgspec.Struct, frozen=True):
    """The decoded members of an event. ``state`` and ``data`` stay JSON.

    ``state`` is UNSET if the event has none, and ``null`` if it deletes its
    key (`change`).
    """

    offset: int = 0
    type: str = ""
    time: str = ""
    key: str = ""
    # Not `Raw | None`: msgspec would then accept null and refuse everything else.
    state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw = msgspec.Raw(b"{}")
    terminal: bool = False

    @property
    def change(self) -> StateChange:
        """What the event does to the state of its key. Without a key it does nothing."""
        if not self.key or self.state is msgspec.UNSET:
            return StateChange.KEEP
        return StateChange.DROP if self.state == _NULL else StateChange.SET


_NULL = msgspec.Raw(b"null")
_decode_head = msgspec.json.Decoder(Head).decode


class Claim(msgspec.Struct, eq=False, gc=False):
    """The number of a new attempt: the expected one, if the backend appends the attempt's first
    draft with it; otherwise the backend assigns one (`semantik_realtime.hookspecs.Backend.claim`).
    """

    topic: str
    """The job's topic."""
    job: str
    token: str
    """Names the attempt: with the same token the backend returns the same number again."""
    expected: int
    """The number, if no attempt has begun that the task's message does not know of."""
    owner: str | None = None
    """The job's owner, if it is known."""
    started_at: str = ""
    """When the attempt began, as events have it. If its expected number is taken and the newest
    attempt began later, it is outdated. "": it is never outdated."""
    number: int | None = None
    """The number, from 1, or 0: the job was deleted, or the attempt is outdated. None: the backend
    was not asked yet. Set once, by the emitter's thread."""


class Draft(msgspec.Struct, kw_only=True, eq=False, omit_defaults=True, gc=False):
    """An event for one topic that is not yet appended.

    ``producer`` and ``number`` make it safe to send a draft twice: the emitter
    sets both once, and the log appends a number of a producer only once.
    """

    topic: str
    type: str
    key: str
    body: bytes
    """The encoded event without its offset (`encode_body`)."""
    change: StateChange = StateChange.KEEP
    """Agrees with the body, as ``terminal`` does."""
    terminal: bool = False
    """Whether it ends the attempt."""
    producer: str = ""
    """The name of the process that made it; a new one after a fork."""
    number: int = 0
    """Grows with every draft of the producer."""
    job: str | None = None
    """The job whose attempts the fence orders; None: the fence does not apply."""
    attempt: int | None = None
    """The job's attempt; None means the newest one."""
    begins: bool = False
    """Whether it is the first draft of its attempt: refused as stale unless no attempt of the job
    has that number or a higher one. Then the drafts of the attempt in the same call are too."""
    claim: Claim | None = None
    """None: ``attempt`` is final. Before it is settled (`number_draft`), the draft is sent only
    to the job's own topic, with the expected number, in one call with the draft that ``begins``."""
    owner: str | None = None
    """Becomes the topic's owner if the topic has none yet (`semantik_realtime.core.ownership`).
    None: the topic's owner stays."""
    due_at: float | None = None
    """When the job is to start, in seconds since 1970; None: as soon as a worker is free. Its own
    topic is kept longer than that (`semantik_realtime.core.retention`)."""

    @property
    def digest(self) -> int:
        """The crc32 of the body, which `link` adds to the chain."""
        return zlib.crc32(self.body)


class Outcome(StrEnum):
    """What became of a draft."""

    APPENDED = "appended"
    DUPLICATE = "duplicate"
    """It was appended before."""
    STALE = "stale"
    """Refused: it belongs to an outdated attempt."""
    CLOSED = "closed"
    """Refused: its job has ended, or its topic was deleted."""
    FOREIGN_OWNER = "foreign_owner"
    """Refused: it has an owner, and its topic belongs to another one."""
    TOO_BIG = "too_big"
    """Refused: its body is over the setting ``max_event_bytes``."""
    TOO_MANY_KEYS = "too_many_keys"
    """Refused: its key is new and the topic has ``max_keys`` keys of jobs that have not ended."""
    REFUSED = "refused"
    """Refused by the backend's server, for this topic alone: a key of another type, for example.
    `Receipt.reason` has the server's words."""
    WAITING = "waiting"
    """Never from a backend: the draft is in this process's queue until the backend is back."""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """A backend's answer to one draft.

    ``cursor`` is the event's position: for APPENDED always, for DUPLICATE as
    long as the log keeps the event.
    """

    outcome: Outcome
    cursor: Cursor | None = None
    reason: str = ""
    """Of REFUSED: what the server says."""
    published: bool = True
    """Of APPENDED: False if the event was not sent to the watchers, who get it when they look."""


def number_draft(draft: Draft) -> None:
    """Give a draft the number of its claim, also in the job's state that it carries.

    >>> claim = Claim("job:1", "1", "token", expected=1, number=2)
    >>> body = encode_body("note", "", "1", state={"status": "running", "attempt": 1})
    >>> draft = Draft(topic="job:1", type="note", key="1", body=body, attempt=1, claim=claim)
    >>> draft.change = StateChange.SET
    >>> number_draft(draft)
    >>> draft.attempt, draft.body
    (2, b'{"type":"note","time":"","key":"1","state":{"status":"running","attempt":2}}')
    """
    claim, draft.claim = draft.claim, None
    if claim is None or claim.number is None or claim.number == draft.attempt:
        return
    draft.attempt = claim.number
    if draft.change is StateChange.SET:
        event = msgspec.json.decode(draft.body)
        event["state"]["attempt"] = claim.number
        draft.body = _encode(event)


def link(chain: int, digest: int) -> int:
    """Return the chain after one more event, whose body has the crc32 ``digest``.

    >>> link(0, 5)
    5
    >>> link(5, 1)
    5000016
    """
    return (chain * CHAIN_FACTOR + digest) % CHAIN_MODULUS


def unlink(chain: int, digest: int) -> int:
    """Return the chain before the event with which `link` returned ``chain``.

    >>> unlink(link(0x9F86D081, 5), 5) == 0x9F86D081
    True
    """
    return (chain - digest) * _CHAIN_INVERSE % CHAIN_MODULUS


def position_before(epoch: str, event: Event) -> Cursor:
    """Return the position before an event of a log whose offsets are dense.

    Computed from the event's chain and its bytes, which must be the stored ones: a wrapper of the
    backend's hooks may have changed them.

    >>> body = b'{"type":"note"}'
    >>> event = Event(18, link(7, zlib.crc32(body)), with_offset(body, 18))
    >>> position_before("e", event)
    Cursor(epoch='e', offset=17, chain=7)
    """
    body = b"{" + event.json.partition(b",")[2]
    return Cursor(epoch, event.offset - 1, unlink(event.chain, zlib.crc32(body)))


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
    """Encode an event without its offset, as one JSON object.

    Without ``state`` the member is absent; None is written as ``null``. Absent
    are also ``data`` if it is empty and ``terminal`` if it is False. NaN and
    infinities become null, because JSON has neither.

    >>> encode_body("note", "2026-01-01T00:00:00.000Z", "42", data={"n": 1})
    b'{"type":"note","time":"2026-01-01T00:00:00.000Z","key":"42","data":{"n":1}}'

    Raises:
        EventError: the type, the key or a member cannot be encoded, or it is nested too deeply.
        EventTooBig: the result has more than ``max_bytes`` bytes.
    """
    check_type(type)
    check_key(key)
    return encode_checked_body(
        type, time, key, state=state, data=data, terminal=terminal, max_bytes=max_bytes
    )


def encode_checked_body(
    type: str,
    time: str,
    key: str,
    *,
    state: Mapping[str, Any] | msgspec.UnsetType | None,
    data: Mapping[str, Any] | None,
    terminal: bool,
    max_bytes: int,
) -> bytes:
    """Return what `encode_body` does; ``type`` is an event type and ``key`` a key."""
    event: dict[str, Any] = {"type": type, "time": time, "key": key}
    if state is not msgspec.UNSET:
        event["state"] = state
    if data:
        event["data"] = data
    if terminal:
        event["terminal"] = True
    try:
        body = _encode(event)
        is_deep = is_too_deep(body)
    except _NOT_ENCODED as error:
        raise EventError(f"event {type} cannot be encoded: {error}") from error
    if len(body) > max_bytes:
        raise EventTooBig(f"event {type} has {len(body)} bytes, the limit is {max_bytes}")
    if is_deep:
        raise EventError(f"event {type} is nested deeper than {MAX_DEPTH} levels")
    return body


def is_too_deep(event: bytes) -> bool:
    """Return True if JSON has more than `MAX_DEPTH` levels of objects and arrays.

    >>> is_too_deep(b"[" * 101 + b"]" * 101), is_too_deep(b'{"text":"[[["}')
    (True, False)
    """
    # Without so many brackets there cannot be so many levels.
    if event.count(b"{") + event.count(b"[") <= MAX_DEPTH:
        return False
    level = [msgspec.json.decode(event)]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(inner, dict | list) for inner in level)


def with_offset(body: bytes, offset: int) -> bytes:
    """Return the event as it is stored, published and sent: ``body`` with its offset in front.

    >>> with_offset(b'{"type":"note"}', 17)
    b'{"offset":17,"type":"note"}'
    """
    return b'{"offset":%d,%b' % (offset, body[1:])
