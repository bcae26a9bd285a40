"""Many WebSocket clients in one process: raw sockets, and as little work for a frame as will do.

What they get is still checked whole: every socket keeps each event it got. The
same clients stand before every server, whatever it speaks (`benchmarks.wires`).
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence

from benchmarks.census import Census, take_census
from benchmarks.traffic import Told
from benchmarks.wires import Heard, Reader, Wire

CONNECT_SECONDS = 10.0
JOIN_SECONDS = 60.0
RECV_BYTES = 2**16
"""At a time. A megabyte takes longer to get from the system than to fill."""
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA


class Client:
    """One socket and what came out of it."""

    def __init__(self, link: socket.socket, reader: Reader) -> None:
        self.socket = link
        self.joined = False
        self.cursor: str | None = None
        self.reached = 0
        """Up to which number it has got."""
        self.frames: list[tuple[int, Sequence[Told]]] = []
        """The events of each frame, and when it came, in nanoseconds."""
        self._base: int | None = None
        self._buffer = bytearray()
        self._reader = reader

    @property
    def events(self) -> list[Told]:
        """All that came."""
        return [event for _, events in self.frames for event in events]

    def upgrade(self, wire: Wire, topic: str, cursor: str | None = None) -> None:
        """Say hello as a WebSocket client, wait for the answer, and ask for a topic.

        No extension is offered: nothing is compressed. From here on the socket
        does not block.
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
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server closed during the handshake")
            self._buffer += data
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if b" 101 " not in head.splitlines()[0]:
            raise ConnectionError(f"no upgrade: {head[:80]!r}")
        greeting = wire.greeting(topic, cursor)
        if greeting is None:
            self.joined = True
        else:
            self._send(TEXT, greeting)
        self.socket.setblocking(False)
        self._buffer.clear()
        self._read(rest)

    def take(self) -> bool:
        """Read what there is; whether events came.

        Raises:
            ConnectionError: the server ended the connection.
        """
        data = self.socket.recv(RECV_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        return self._read(data)

    def census(self, expected: int) -> Census:
        """By the publisher's numbers, and by the offsets after the sync where there was one."""
        events = self.events
        counted = take_census([event.data.n for event in events if event.data.n >= 0], expected)
        if self._base is None:
            return counted
        first = self._base + 1
        return counted | take_census([event.offset - first for event in events])

    def _read(self, data: bytes) -> bool:
        self._buffer += data
        before = len(self.frames)
        now = time.monotonic_ns()
        for opcode, payload in self._split():
            if opcode == TEXT:
                self._hear(self._reader.read(payload), now)
            elif opcode == PING:
                self._send(PONG, payload)
            elif opcode == CLOSE:
                raise ConnectionError(f"the server closed: {payload!r}")
        return len(self.frames) > before

    def _hear(self, heard: Heard, now: int) -> None:
        if heard.events:
            self.frames.append((now, heard.events))
            self.reached = heard.events[-1].data.n + 1
        if heard.cursor is not None:
            self.cursor = heard.cursor
        if heard.reply is not None:
            self._send(TEXT, heard.reply)
        if heard.joined:
            self.joined = True
            self._base = heard.offset

    def _send(self, opcode: int, payload: bytes) -> None:
        # A client must mask; a mask of zeros changes nothing.
        size = len(payload)
        head = bytes((0x80 | opcode, 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 0xFE))
        length = b"" if size < 126 else struct.pack("!H", size)
        self.socket.sendall(head + length + bytes(4) + payload)

    def _split(self) -> Iterator[tuple[int, bytes]]:
        buffer, start, end = self._buffer, 0, len(self._buffer)
        while end - start >= 2:
            size, head = buffer[start + 1], 2
            if size >= 126:
                head = 4 if size == 126 else 10
                if end - start < head:
                    break
                size = int.from_bytes(buffer[start + 2 : start + head], "big")
            body, start_of_next = start + head, start + head + size
            if end < start_of_next:
                break
            yield buffer[start] & 0x0F, bytes(memoryview(buffer)[body:start_of_next])
            start = start_of_next
        del buffer[:start]


class Crowd:
    """Clients that follow one topic."""

    def __init__(self, port: int, wire: Wire, topic: str, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self.clients: list[Client] = []
        reader = Reader(wire, topic)
        for _ in range(count):
            client = connect(port, reader)
            client.upgrade(wire, topic)
            self.clients.append(client)
            self._selector.register(client.socket, selectors.EVENT_READ, client)
        deadline = time.monotonic() + JOIN_SECONDS
        while not all(client.joined for client in self.clients):
            if time.monotonic() > deadline:
                raise TimeoutError("not every client joined")
            self.take(JOIN_SECONDS)

    def take(self, seconds: float) -> bool:
        """Read what there is, and wait for it so long; whether events came.

        A connection that the server ends gets nothing from then on.
        """
        came = False
        for key, _ in self._selector.select(seconds):
            try:
                came = key.data.take() or came
            except ConnectionError:
                self._selector.unregister(key.fileobj)
        return came

    def close(self) -> None:
        """End all connections."""
        self._selector.close()
        for client in self.clients:
            client.socket.close()


def connect(port: int, reader: Reader) -> Client:
    """A client whose socket is connected, and has said nothing."""
    return Client(socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS), reader)
