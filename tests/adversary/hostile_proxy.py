"""A proxy that also delays, slows, loses one direction, and lets a later connection go first."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator

from semantik_realtime.testing.tcp_proxy import TcpProxy


class HostileProxy(TcpProxy):
    """A `TcpProxy` with more faults, each switched by a context manager.

    Args:
        port: The server's.
        rng: Decides which of two connections comes first.
    """

    def __init__(self, port: int, rng: random.Random) -> None:
        super().__init__(port)
        self._rng = rng
        # Seconds before a part that has arrived is forwarded.
        self._delay_seconds = 0.0
        # Whether what the server sends is lost while the connections stay open.
        self._is_half_open = False
        self._reorders = False

    @contextlib.contextmanager
    def delaying(self, seconds: float, part_bytes: int = 2**16) -> Iterator[None]:
        """Forward each part of at most ``part_bytes`` only after ``seconds``."""
        self._delay_seconds, self._part_bytes = seconds, part_bytes
        try:
            yield
        finally:
            self._delay_seconds, self._part_bytes = 0.0, 2**16

    @contextlib.contextmanager
    def half_open(self) -> Iterator[None]:
        """Lose what the server sends inside the block; those connections end with it."""
        self._is_half_open = True
        try:
            yield
        finally:
            self._is_half_open = False
            self.cut()

    @contextlib.contextmanager
    def reordering(self) -> Iterator[None]:
        """Cut all connections, and let those that begin in the block overtake each other."""
        self._reorders = True
        self.cut()
        try:
            yield
        finally:
            self._reorders = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._reorders:
            await asyncio.sleep(self._rng.uniform(0, 0.5))
        await super()._accept(reader, writer)

    async def _passes(self, *, are_responses: bool) -> bool:
        if are_responses and self._is_half_open:
            return False
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        return True
