"""Many WebSocket clients in one process: raw sockets, and little work for each frame.

Every client keeps every event it receives, so that errors can be counted. The same clients
connect to every contender, through its wire (`benchmarks.wires`).
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence

from benchmarks.measurement import DeliveryErrors, count_errors
from benchmarks.traffic import NumberedEvent
from benchmarks.wires import Content, Reader, Wire

CONNECT_SECONDS = 30.0
"""How long a connection and its handshake may take, also in a crowd."""
JOIN_SECONDS = 60.0
"""How long it may take until every client has joined, after the last one was connected."""
RECEIVE_BYTES = 2**16
"""The most to read at a time: to allocate a megabyte takes longer than to fill 64 KiB."""
RECEIVE_EVERY = 20
"""Joining clients between two looks at those that have joined."""
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
"""Opcodes (RFC 6455, 5.2)."""


class Client:
    """One connection, and the events it received."""

    def __init__(self, connected: socket.socket, reader: Reader) -> None:
        self.socket = connected
        self.joined = False
        """Set when the server has confirmed the topic."""
        self.cursor: str | None = None
        """Where to resume; set by every frame that names a place."""
        self.received = 0
        """The number of the newest event, plus one."""
        self.frames: list[tuple[int, Sequence[NumberedEvent]]] = []
        """When each frame with events arrived (`time.monotonic_ns`), and its events."""
        self._base: int | None = None
        """The topic's offset when the client joined; None if the server did not name it."""
        self._buffer = bytearray()
        """Bytes of a frame that is not complete yet."""
        self._reader = reader

    @property
    def events(self) -> list[NumberedEvent]:
        """All events, in the order in which they arrived."""
        return [event for _, events in self.frames for event in events]

    def upgrade(self, wire: Wire, topic: str, cursor: str | None = None) -> None:
        """Do `ask_upgrade`, and then `finish_upgrade`."""
        self.ask_upgrade(wire, topic)
        self.finish_upgrade(wire, topic, cursor)

    def ask_upgrade(self, wire: Wire, topic: str) -> None:
        """Ask the server to upgrade to WebSocket.

        No extension is offered, so nothing is compressed.
        """
        lines = [
            f"GET {wire.path(topic)} HTTP/1.1",
            "Host: 127.0.0.1",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        ]
        if wire.subprotocol is not None:
            lines.append(f"Sec-WebSocket-Protocol: {wire.subprotocol}")
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def finish_upgrade(self, wire: Wire, topic: str, cursor: str | None = None) -> None:
        """Wait for the upgrade, blocking, and send the first frame.

        Afterwards the socket is non-blocking.

        Raises:
            ConnectionError: the server refused or closed the connection.
        """
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionError("the server closed the connection during the handshake")
            self._buffer += data
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if b" 101 " not in head.splitlines()[0]:
            raise ConnectionError(f"the server refused the upgrade: {head[:80]!r}")
        first_frame = wire.first_frame(topic, cursor)
        if first_frame is None:
            self.joined = True
        else:
            self._send(TEXT, first_frame)
        self.socket.setblocking(False)
        self._buffer.clear()
        self._read(rest)

    def receive(self) -> bool:
        """Read what has arrived, and return True if there were events in it.

        Raises:
            ConnectionError: the server closed the connection.
        """
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        return self._read(data)

    def errors(self, expected: int) -> DeliveryErrors:
        """Count errors by the events' numbers, and by their offsets if the base is known."""
        events = self.events
        by_number = count_errors([event.data.n for event in events if event.data.n >= 0], expected)
        if self._base is None:
            return by_number
        first = self._base + 1
        return by_number | count_errors([event.offset - first for event in events])

    def _read(self, data: bytes) -> bool:
        self._buffer += data
        frames_before = len(self.frames)
        now = time.monotonic_ns()
        for opcode, payload in self._split():
            if opcode == TEXT:
                self._apply(self._reader.read(payload), now)
            elif opcode == PING:
                self._send(PONG, payload)
            elif opcode == CLOSE:
                raise ConnectionError(f"the server closed the connection: {payload!r}")
        return len(self.frames) > frames_before

    def _apply(self, content: Content, now: int) -> None:
        if content.events:
            self.frames.append((now, content.events))
            self.received = content.events[-1].data.n + 1
        if content.cursor is not None:
            self.cursor = content.cursor
        if content.reply is not None:
            self._send(TEXT, content.reply)
        if content.joined:
            self.joined = True
            self._base = content.offset

    def _send(self, opcode: int, payload: bytes) -> None:
        # A client must mask its frames (RFC 6455, 5.3); a mask of zeros leaves the bytes alone.
        size = len(payload)
        head = bytes((0x80 | opcode, 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 0xFE))
        length = b"" if size < 126 else struct.pack("!H", size)
        self.socket.sendall(head + length + bytes(4) + payload)

    def _split(self) -> Iterator[tuple[int, bytes]]:
        """Yield opcode and payload of each complete frame, and remove it from the buffer."""
        buffer, start, end = self._buffer, 0, len(self._buffer)
        while end - start >= 2:
            size, head = buffer[start + 1], 2
            if size >= 126:
                head = 4 if size == 126 else 10
                if end - start < head:
                    break
                size = int.from_bytes(buffer[start + 2 : start + head], "big")
            body, next_start = start + head, start + head + size
            if end < next_start:
                break
            yield buffer[start] & 0x0F, bytes(memoryview(buffer)[body:next_start])
            start = next_start
        del buffer[:start]


class ClientPool:
    """Clients that watch a topic each, several of them the same one or not.

    Args:
        port: of the web server.
        wire: its protocol.
        topics: of each client.
        cursors: where each client resumes; None: nowhere.
        at_once: whether all ask before the first one gets its answer, as a crowd does; otherwise
            one connects after the other.

    Raises:
        ConnectionError: the server refused a connection.
        TimeoutError: a client had not joined after `JOIN_SECONDS`.
    """

    def __init__(
        self,
        port: int,
        wire: Wire,
        topics: Sequence[str],
        cursors: Sequence[str | None] | None = None,
        at_once: bool = False,
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self.clients: list[Client] = []
        readers = {topic: Reader(wire, topic) for topic in topics}
        if at_once:
            for topic in topics:
                self.clients.append(connect(port, readers[topic]))
                self.clients[-1].ask_upgrade(wire, topic)
        for place, topic in enumerate(topics):
            if not at_once:
                self.clients.append(connect(port, readers[topic]))
                self.clients[-1].ask_upgrade(wire, topic)
            client = self.clients[place]
            client.finish_upgrade(wire, topic, cursors[place] if cursors else None)
            self._selector.register(client.socket, selectors.EVENT_READ, client)
            if place % RECEIVE_EVERY == 0:
                # A server closes a connection that does not answer its pings.
                self.receive(0)
        deadline = time.monotonic() + JOIN_SECONDS
        # A client that has joined stays so: each is asked only until then.
        joining = iter(self.clients)
        waits_for = next(joining, None)
        while waits_for is not None:
            if waits_for.joined:
                waits_for = next(joining, None)
                continue
            if time.monotonic() > deadline:
                raise TimeoutError(f"not every client had joined after {JOIN_SECONDS:g} s")
            self.receive(JOIN_SECONDS)

    def receive(self, seconds: float) -> bool:
        """Wait for data, ``seconds`` at most, read it, and return True if there were events in it.

        A connection that the server closed is not read again.
        """
        any_events = False
        for key, _ in self._selector.select(seconds):
            try:
                any_events = key.data.receive() or any_events
            except ConnectionError:
                self._selector.unregister(key.fileobj)
        return any_events

    def idle(self, seconds: float) -> None:
        """Receive for ``seconds``, so that pings are answered."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.receive(left)

    def leave(self, count: int) -> None:
        """Close the first ``count`` connections, which are no longer received."""
        for client in self.clients[:count]:
            with contextlib.suppress(KeyError):
                self._selector.unregister(client.socket)
            client.socket.close()
        del self.clients[:count]

    def close(self) -> None:
        """Close all connections."""
        self._selector.close()
        for client in self.clients:
            client.socket.close()


def connect(port: int, reader: Reader) -> Client:
    """Return a client that is connected and has sent nothing."""
    return Client(socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS), reader)
