"""A TCP proxy whose connections can be cut, refused, led elsewhere or made to lose responses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class TcpProxy:
    """Forward connections to a port of this machine; `cut` ends them at any moment."""

    def __init__(self, port: int) -> None:
        self.target = port
        """Where new connections lead. Those that are open stay where they are."""
        # Both ends of every open connection.
        self._writers: set[asyncio.StreamWriter] = set()
        self._forwarding: set[asyncio.Task[None]] = set()
        self._is_refusing = False
        self.drops_responses = False
        """Whether the server's next response is lost, and its connection with it."""
        self.port = 0

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
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
        yield
        self._is_refusing = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            writer.transport.abort()
            return
        try:
            other_reader, other = await asyncio.open_connection("127.0.0.1", self.target)
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
            while data := await reader.read(2**16):
                if are_responses and self.drops_responses:
                    break
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.transport.abort()
