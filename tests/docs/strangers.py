"""Clients without a credential that send much and finish nothing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator

PART = 60_000
MESSAGE_BYTES = 15_000_000
SECONDS = 15.0
"""How long a client may go on sending."""


def _head(op: int, length: int, *, is_last: bool, is_compressed: bool = False) -> bytes:
    first = (0x80 if is_last else 0) | (0x40 if is_compressed else 0) | op
    size = struct.pack("!BQ", 0x80 | 127, length)
    if length < 65536:
        size = struct.pack("!BH", 0x80 | 126, length)
    # The mask is zero, so the payload is as it is.
    return bytes([first]) + size + bytes(4)


def _unfinished() -> Iterator[bytes]:
    yield _head(1, MESSAGE_BYTES, is_last=True)
    for _ in range(MESSAGE_BYTES // PART - 1):
        yield b"x" * PART


def _in_parts() -> Iterator[bytes]:
    for number in range(MESSAGE_BYTES // PART):
        yield _head(0 if number else 1, PART, is_last=False) + b"x" * PART


def _compressed() -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(b"x" * MESSAGE_BYTES) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield _head(1, len(data) - 4, is_last=True, is_compressed=True) + data[:-4]


def _headers() -> Iterator[bytes]:
    for number in range(MESSAGE_BYTES // 1000):
        yield b"X-%d: %s\r\n" % (number, b"y" * 990)


MESSAGES: dict[str, Callable[[], Iterator[bytes]]] = {
    "unfinished": _unfinished,
    "in parts": _in_parts,
    "compressed": _compressed,
    "headers": _headers,
}


@contextlib.asynccontextmanager
async def sending(port: int, kind: str, *, connections: int) -> AsyncIterator[None]:
    """Run the block when each client has sent what the server let it send."""
    writers = await asyncio.gather(*(_send(port, kind) for _ in range(connections)))
    try:
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


async def _send(port: int, kind: str) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(SECONDS):
            writer.write(
                b"GET /realtime/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
                b"Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\n"
            )
            if kind != "headers":
                writer.write(b"\r\n")
                assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            for part in MESSAGES[kind]():
                writer.write(part)
                await writer.drain()
            # Until the server has read it, closed the connection, or stopped reading.
            await asyncio.wait_for(reader.read(), 2.0)
    return writer
