"""What clients say and hear on a WebSocket. Pure: bytes in, values out."""

from __future__ import annotations

from typing import Protocol

import msgspec

from benchmarks.traffic import Told, read_event
from semantik_realtime.core.session import SUBPROTOCOL

HEAD_BYTES = 128
KNOWN_FRAMES = 1024


class Heard(msgspec.Struct, frozen=True):
    """What a frame said."""

    joined: bool = False
    """Whether the client follows from now on."""
    reply: bytes | None = None
    """What to answer."""
    cursor: str | None = None
    """Where to resume after this frame."""
    offset: int | None = None
    """Of a sync without events: what follows comes after it."""
    events: tuple[Told, ...] = ()


class Wire(Protocol):
    """A protocol on a WebSocket."""

    @property
    def subprotocol(self) -> str | None:
        """What is asked for in the handshake."""

    def path(self, topic: str) -> str:
        """Where to connect."""

    def greeting(self, topic: str, cursor: str | None) -> bytes | None:
        """What to say first; None: whoever is connected has joined."""

    def read(self, payload: bytes, topic: str) -> Heard:
        """What a frame says."""


class _Batch(msgspec.Struct, frozen=True):
    events: tuple[Told, ...]
    cursor: str


class _Frame(msgspec.Struct, frozen=True):
    op: str
    topics: dict[str, _Batch] = {}
    cursor: str | None = None
    offset: int | None = None
    events: tuple[Told, ...] = ()


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_emitted = msgspec.json.Decoder(tuple[str, Told]).decode


class NativeWire:
    """Ours, v1."""

    subprotocol: str | None = SUBPROTOCOL

    def path(self, topic: str) -> str:
        return "/realtime/ws"

    def greeting(self, topic: str, cursor: str | None) -> bytes:
        return msgspec.json.encode({"op": "subscribe", "topics": {topic: cursor}})

    def read(self, payload: bytes, topic: str) -> Heard:
        frame = _decode_frame(payload)
        if frame.op == "sync":
            offset = None if frame.events else frame.offset
            return Heard(True, None, frame.cursor, offset, frame.events)
        batch = frame.topics.get(topic) if frame.op == "events" else None
        return Heard() if batch is None else Heard(cursor=batch.cursor, events=batch.events)


class SocketIoWire:
    """Socket.IO 5 over Engine.IO 4, straight on a WebSocket. The client asks for a room."""

    subprotocol: str | None = None

    def path(self, topic: str) -> str:
        return "/socket.io/?EIO=4&transport=websocket"

    def greeting(self, topic: str, cursor: str | None) -> bytes:
        return b"40"

    def read(self, payload: bytes, topic: str) -> Heard:
        if payload.startswith(b"42"):
            return Heard(events=(_decode_emitted(payload[2:])[1],))
        if payload.startswith(b"40"):
            return Heard(reply=b"420" + msgspec.json.encode(["watch", topic]))
        if payload == b"2":
            return Heard(reply=b"3")
        return Heard(joined=payload.startswith(b"430"))


class BareWire:
    """The event as it was published, one a frame; connecting to a topic's path is joining."""

    subprotocol: str | None = None

    def path(self, topic: str) -> str:
        return f"/watch/{topic}"

    def greeting(self, topic: str, cursor: str | None) -> None:
        return None

    def read(self, payload: bytes, topic: str) -> Heard:
        return Heard(events=(read_event(payload),))


class Reader:
    """Reads frames of which most come to many sockets: each is decoded once.

    A frame counts as known only if every byte of it is.
    """

    def __init__(self, wire: Wire, topic: str) -> None:
        self._wire = wire
        self._topic = topic
        self._known: dict[bytes, tuple[bytes, Heard]] = {}

    def read(self, payload: bytes) -> Heard:
        """What the frame says."""
        # Hashing some 60 kB takes longer than comparing them, so only the head is hashed.
        head = payload[:HEAD_BYTES]
        known = self._known.get(head)
        if known is not None and known[0] == payload:
            return known[1]
        heard = self._wire.read(payload, self._topic)
        if len(self._known) >= KNOWN_FRAMES:
            self._known.clear()
        self._known[head] = payload, heard
        return heard
