"""A TCP proxy whose connections can be cut, refused, stopped, led elsewhere, or lose responses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class TcpProxy:
    """Forward connections from a port of this machine to a server.

    Args:
        port: The server's.
        host: The server's name or address.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.target = port
        """Where new connections lead. Those that are open stay where they are."""
        self._host = host
        # Both ends of every open connection.
        self._writers: set[asyncio.StreamWriter] = set()
        self._forwarding: set[asyncio.Task[None]] = set()
        self._is_refusing = False
        # Most bytes that are forwarded at once.
        self._part_bytes = 2**16
        # Cleared while nothing is forwarded, although every connection stays open.
        self._may_forward = asyncio.Event()
        self._may_forward.set()
        self.drops_responses = False
        """Whether the server's next response is lost, and its connection with it."""
        self.port = 0

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._may_forward.set()
        while self._forwarding:
            self.cut()
            await asyncio.wait(self._forwarding)

    def cut(self) -> int:
        """Abort every connection; return how many there were."""
        for writer in self._writers:
            writer.transport.abort()
        return len(self._writers) // 2

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Cut every connection, and refuse new ones inside the block."""
        self._is_refusing = True
        self.cut()
        try:
            yield
        finally:
            self._is_refusing = False

    @contextlib.contextmanager
    def losing_responses(self) -> Iterator[None]:
        """Lose the next response of each connection inside the block, and the connection."""
        self.drops_responses = True
        try:
            yield
        finally:
            self.drops_responses = False

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Hold back every byte inside the block, in both directions; none is lost."""
        self._may_forward.clear()
        try:
            yield
        finally:
            self._may_forward.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            writer.transport.abort()
            return
        try:
            other_reader, other = await asyncio.open_connection(self._host, self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, other}
        there = self._forward(reader, other)
        back = self._forward(other_reader, writer, are_responses=True)
        for task in map(asyncio.create_task, (there, back)):
            self._forwarding.add(task)
            task.add_done_callback(self._forwarding.discard)

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        are_responses: bool = False,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self._part_bytes):
                await self._may_forward.wait()
                if are_responses and self.drops_responses:
                    break
                if await self._passes(are_responses=are_responses):
                    writer.write(data)
                    await writer.drain()
        self._writers.discard(writer)
        writer.transport.abort()

    async def _passes(self, *, are_responses: bool) -> bool:
        """Return True when the next part may be forwarded, False to lose it."""
        return True
