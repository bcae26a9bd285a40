"""Many WebSocket clients in one process: raw sockets, and as little work for a frame as will do.

What they get is still checked whole: every socket keeps the number and the
offset of each event it got. All of them get the same frames, so a frame is
decoded once.
"""

from __future__ import annotations

import functools
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from benchmarks.burst import Burst
from benchmarks.census import Census, take_census
from benchmarks.report import Measurement
from benchmarks.traffic import Told
from semantik_realtime.core.session import SUBPROTOCOL

CONNECT_SECONDS = 10.0
JOIN_SECONDS = 60.0
SILENCE_SECONDS = 5.0
"""After so long without an event, what has not come is lost."""
RECV_BYTES = 2**20
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA


class _Batch(msgspec.Struct, frozen=True):
    prev: int
    offset: int
    events: list[Told]


class _Frame(msgspec.Struct, frozen=True):
    op: str
    topics: dict[str, _Batch] = {}
    offset: int = 0


_decode = msgspec.json.Decoder(_Frame).decode


class Client:
    """One socket and what came out of it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS)
        self.offsets: list[int] = []
        self.numbers: list[int] = []
        self.synced_at = -1
        """The offset of the sync; -1 before."""
        self.frames = 0
        self._buffer = bytearray()

    @property
    def reached(self) -> int:
        """Up to which number it has got."""
        return self.numbers[-1] + 1 if self.numbers else 0

    def upgrade(self) -> None:
        """Say hello as a WebSocket client, and wait for the answer.

        No extension is offered: nothing is compressed.
        """
        self.socket.sendall(
            b"GET /realtime/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Sec-WebSocket-Protocol: %b\r\n\r\n" % SUBPROTOCOL.encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server closed during the handshake")
            self._buffer += data
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if b" 101 " not in head.splitlines()[0]:
            raise ConnectionError(f"no upgrade: {head[:80]!r}")
        self._buffer = bytearray(rest)

    def subscribe(self, topic: str) -> None:
        """Ask for a topic from a snapshot; from here on the socket does not block."""
        self._send(TEXT, b'{"op":"subscribe","topics":{"%b":null}}' % topic.encode())
        self.socket.setblocking(False)

    def take(self) -> bool:
        """Read what there is; whether events came.

        Raises:
            ConnectionError: the server ended the connection.
        """
        data = self.socket.recv(RECV_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data
        before = len(self.offsets)
        for opcode, payload in self._frames():
            if opcode == TEXT:
                synced_at, offsets, numbers = _read(payload)
                if synced_at is not None:
                    self.synced_at = synced_at
                if offsets:
                    self.frames += 1
                    self.offsets += offsets
                    self.numbers += numbers
            elif opcode == PING:
                self._send(PONG, payload)
            elif opcode == CLOSE:
                raise ConnectionError(f"the server closed: {payload!r}")
        return len(self.offsets) > before

    def census(self, expected: int) -> Census:
        """By the publisher's numbers, and by the offsets after the sync."""
        first = self.synced_at + 1
        return take_census(self.numbers, expected) | take_census(
            [offset - first for offset in self.offsets]
        )

    def _send(self, opcode: int, payload: bytes) -> None:
        # A client must mask; a mask of zeros changes nothing.
        self.socket.sendall(struct.pack("!BBL", 0x80 | opcode, 0x80 | len(payload), 0) + payload)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        buffer, start = self._buffer, 0
        while len(buffer) - start >= 2:
            size, head = buffer[start + 1], 2
            if size >= 126:
                head = 4 if size == 126 else 10
                if len(buffer) - start < head:
                    break
                size = int.from_bytes(buffer[start + 2 : start + head], "big")
            end = start + head + size
            if len(buffer) < end:
                break
            yield buffer[start] & 0x0F, bytes(memoryview(buffer)[start + head : end])
            start = end
        del buffer[:start]


@functools.lru_cache(maxsize=1024)
def _read(payload: bytes) -> tuple[int | None, list[int], list[int]]:
    """The offset of a sync, and the offsets and numbers of events."""
    frame = _decode(payload)
    if frame.op == "sync":
        return frame.offset, [], []
    events = [event for batch in frame.topics.values() for event in batch.events]
    return (
        None,
        [event.offset for event in events],
        [event.data.n for event in events if event.data.n >= 0],
    )


def run_clients(port: int, count: int, burst: Burst, pipe: Connection[Any, Any]) -> None:
    """Follow a burst with ``count`` clients; send a `Measurement` into the pipe."""
    clients = [Client(port) for _ in range(count)]
    selector = selectors.DefaultSelector()
    for client in clients:
        client.upgrade()
        client.subscribe(burst.topic)
        selector.register(client.socket, selectors.EVENT_READ, client)
    deadline = time.monotonic() + JOIN_SECONDS
    while any(client.synced_at < 0 for client in clients):
        if time.monotonic() > deadline:
            raise TimeoutError("not every client was given a sync")
        _take_all(selector)
    cpu = time.process_time()
    heard_at = time.monotonic()
    burst.go.set()
    while burst.reached.value != burst.sent.value:
        if _take_all(selector):
            heard_at = time.monotonic()
            burst.reached.value = min(client.reached for client in clients)
        elif time.monotonic() > heard_at + SILENCE_SECONDS and burst.sent.value >= 0:
            break
    cpu = time.process_time() - cpu
    sent = burst.sent.value
    seconds = heard_at - burst.started_at.value
    frames = sum(client.frames for client in clients)
    deliveries = sum(len(client.offsets) for client in clients)
    pipe.send(
        Measurement(
            deliveries,
            seconds,
            sum((client.census(sent) for client in clients), Census()),
            {
                "sockets": count,
                "window": burst.window,
                "events_published": sent,
                "events_per_frame": round(deliveries / max(1, frames), 1),
                "client_cpu_share": round(cpu / seconds, 2),
            },
        )
    )
    for client in clients:
        client.socket.close()


def _take_all(selector: selectors.BaseSelector) -> bool:
    came = False
    for key, _ in selector.select(0.1):
        came = key.data.take() or came
    return came
