"""The protocols that contenders speak on a WebSocket, from the client's side. Pure: no I/O."""

from __future__ import annotations

from typing import Protocol

import msgspec

from benchmarks.traffic import NumberedEvent, read_event
from semantik_realtime.core.session import SUBPROTOCOL

HEAD_BYTES = 128
"""How much of a frame is hashed to find it among the known frames."""
KNOWN_FRAMES = 1024
"""The most frames that a `Reader` keeps."""


class Content(msgspec.Struct, frozen=True):
    """The content of one frame from a server."""

    joined: bool = False
    """Whether the client receives the topic's events from now on."""
    reply: bytes | None = None
    """The frame to answer with."""
    cursor: str | None = None
    """Where to resume after this frame."""
    offset: int | None = None
    """The topic's offset, from a sync without events: the next event follows it."""
    events: tuple[NumberedEvent, ...] = ()


class Wire(Protocol):
    """One protocol."""

    @property
    def subprotocol(self) -> str | None:
        """The WebSocket subprotocol to offer in the handshake."""

    def path(self, topic: str) -> str:
        """Return the path to connect to."""

    def first_frame(self, topic: str, cursor: str | None) -> bytes | None:
        """Return the client's first frame; None if connecting is enough to join."""

    def read(self, payload: bytes, topic: str) -> Content:
        """Return the content of a frame.

        Raises:
            msgspec.DecodeError: the frame is not of this protocol.
        """


class _Batch(msgspec.Struct, frozen=True):
    cursor: str
    # A heartbeat has none.
    events: tuple[NumberedEvent, ...] = ()


class _Frame(msgspec.Struct, frozen=True):
    op: str
    topics: dict[str, _Batch] = {}
    cursor: str | None = None
    offset: int | None = None
    events: tuple[NumberedEvent, ...] = ()


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_emitted = msgspec.json.Decoder(tuple[str, NumberedEvent]).decode


class NativeWire:
    """The wire `v1` of this project."""

    subprotocol: str | None = SUBPROTOCOL

    def path(self, topic: str) -> str:
        return "/realtime/ws"

    def first_frame(self, topic: str, cursor: str | None) -> bytes:
        return msgspec.json.encode({"op": "subscribe", "topics": {topic: cursor}})

    def read(self, payload: bytes, topic: str) -> Content:
        frame = _decode_frame(payload)
        if frame.op == "sync":
            offset = None if frame.events else frame.offset
            return Content(True, None, frame.cursor, offset, frame.events)
        batch = frame.topics.get(topic) if frame.op == "events" else None
        return Content() if batch is None else Content(cursor=batch.cursor, events=batch.events)


class SocketIoWire:
    """Socket.IO 5 over Engine.IO 4, without HTTP polling first. The client joins a room."""

    subprotocol: str | None = None

    def path(self, topic: str) -> str:
        return "/socket.io/?EIO=4&transport=websocket"

    def first_frame(self, topic: str, cursor: str | None) -> bytes:
        return b"40"

    def read(self, payload: bytes, topic: str) -> Content:
        if payload.startswith(b"42"):
            return Content(events=(_decode_emitted(payload[2:])[1],))
        if payload.startswith(b"40"):
            return Content(reply=b"420" + msgspec.json.encode(["watch", topic]))
        if payload == b"2":
            return Content(reply=b"3")
        return Content(joined=payload.startswith(b"430"))


class BareWire:
    """One event per frame, as it was published. Connecting to a topic's path joins it."""

    subprotocol: str | None = None

    def path(self, topic: str) -> str:
        return f"/watch/{topic}"

    def first_frame(self, topic: str, cursor: str | None) -> None:
        return None

    def read(self, payload: bytes, topic: str) -> Content:
        return Content(events=(read_event(payload),))


class Reader:
    """Reads the frames of many sockets, and decodes a frame that all of them receive only once.

    A frame is known only if all its bytes are.
    """

    def __init__(self, wire: Wire, topic: str) -> None:
        self._wire = wire
        self._topic = topic
        self._known: dict[bytes, tuple[bytes, Content]] = {}
        """Frames by their first `HEAD_BYTES`; cleared when there are `KNOWN_FRAMES`."""

    def read(self, payload: bytes) -> Content:
        """Return the content of the frame."""
        # To hash some 60 kB takes longer than to compare them, so only the head is hashed.
        head = payload[:HEAD_BYTES]
        known = self._known.get(head)
        if known is not None and known[0] == payload:
            return known[1]
        content = self._wire.read(payload, self._topic)
        if len(self._known) >= KNOWN_FRAMES:
            self._known.clear()
        self._known[head] = payload, content
        return content
