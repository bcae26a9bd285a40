"""The canary: numbers that the writer of a process writes, and that its readers must see.

Reads, live events and writes have connections of their own. An address may move
while each of them is open, so they may be on different servers: the writer on
the new primary, the readers on an old replica that nobody writes to any more,
but that answers every call. Only what the writer has written shows that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from semantik_realtime.backends.redis.script import CANARY, milliseconds
from semantik_realtime.backends.redis.writer import Writer
from semantik_realtime.cancellation import keep_cancellation
from semantik_realtime.errors import BackendError
from semantik_realtime.native_threads import is_patched

logger = logging.getLogger(__name__)

KEEP_SECONDS = 60.0
"""How long the server keeps a number; the next one comes after a few seconds."""


class Mark(NamedTuple):
    """A number that was written."""

    key: str
    """The hash that has it in its field ``number``, in the slot of the channel."""
    number: int


class Canary:
    """Numbers that grow, of one process and one node. Lives on one loop.

    Args:
        writer: the writer of this process; None: it has none.
        publish: publishes a text to a channel without the writer.
        make_channel: makes a channel that the node has; None: it has none.
        timeout_seconds: how long a number may take to come back.
        is_sharded: whether the node is one of a cluster.
        lost: called when a number has not come back.
    """

    def __init__(
        self,
        writer: Writer | None,
        publish: Callable[[str, str], Awaitable[object]],
        make_channel: Callable[[], str | None],
        timeout_seconds: float,
        *,
        is_sharded: bool = False,
        lost: Callable[[], object] = lambda: None,
    ) -> None:
        self.channel: bytes | None = None
        """Where the numbers are published; None while the node has no channel."""
        self.mark: Mark | None = None
        """What the writer has written; a reader that does not find that number, or a later one, is
        on another server. None: there is nothing to find."""
        self._writer = writer
        self._publish = publish
        self._make_channel = make_channel
        self._timeout = timeout_seconds
        self._is_sharded = int(is_sharded)
        self._lost = lost
        # The newest number that was tried.
        self._number = 0
        # The newest one that has come back, and what is set then.
        self._received = 0
        self._has_received = asyncio.Event()
        # The connection over which the last one came back, and the lineage of its writer.
        self._proof: tuple[object, int] = (None, 0)
        # Set with each proof, and cleared at once: `prove` compares the proof itself.
        self._proven = asyncio.Event()
        # Set to send a number now.
        self._due = asyncio.Event()

    def choose(self) -> bytes | None:
        """Choose another channel, and return it; the subscriber subscribes to it."""
        channel = self._make_channel()
        self.channel = None if channel is None else channel.encode()
        if self._is_sharded:
            # The node may have given away the slot of the one before.
            self.mark = None
        return self.channel

    def receive(self, payload: bytes) -> None:
        """A number has come back."""
        self._received = max(self._received, int(payload))
        self._has_received.set()

    async def fly(self, connection: object) -> None:
        """Send a number, and wait until it comes back over ``connection``.

        Raises:
            Exception: it did not, or could not be sent.
        """
        self._due.clear()
        lineage = self._lineage
        self._number += 1
        number = self._number
        try:
            if not await self.write(number):
                assert self.channel is not None
                await keep_cancellation(self._publish(self.channel.decode(), str(number)))
            async with asyncio.timeout(self._timeout):
                while self._received < number:
                    self._has_received.clear()
                    await self._has_received.wait()
        except Exception:
            self._lost()
            raise
        self._proof = (connection, lineage)
        self._proven.set()
        self._proven.clear()

    async def pause(self, seconds: float) -> None:
        """Wait until the next number is due, at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._due.wait()

    async def prove(self, connection_of: Callable[[], object]) -> None:
        """Wait for a number over the present connection, from a writer as new as the present one.

        Args:
            connection_of: returns the present connection; None while there is none.
        """
        lineage = self._lineage
        while self.channel is not None:
            connection, proven = self._proof
            if connection is not None and connection is connection_of() and proven >= lineage:
                return
            self._due.set()
            await self._proven.wait()

    async def write(self, number: int = 0) -> bool:
        """Write ``number``, or the next one, with the writer. Return False if that is impossible.

        It is in a process that has written nothing yet, or whose writes fail.
        """
        if not number:
            self._number += 1
            number = self._number
        writer, channel = self._writer, self.channel
        # Beside greenlets a thread of the executor is one of them, and cannot block.
        if writer is None or not writer.connections or channel is None or is_patched():
            return False
        key = channel.decode() + ":canary"
        args: list[Any] = [channel, number, milliseconds(KEEP_SECONDS), self._is_sharded]
        try:
            await keep_cancellation(asyncio.to_thread(writer.run, CANARY, [key], *args))
        except BackendError as error:
            logger.debug("canary: not written error=%s", error)
            return False
        if channel == self.channel and (self.mark is None or number > self.mark.number):
            self.mark = Mark(key, number)
        return True

    @property
    def _lineage(self) -> int:
        """Grows with each new connection of the writer: it may lead to another server."""
        return 0 if self._writer is None else self._writer.connections
