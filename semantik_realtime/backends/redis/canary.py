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
import secrets
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from semantik_realtime.backends.redis.script import CANARY, Writer, milliseconds
from semantik_realtime.cancellation import keep_cancellation
from semantik_realtime.errors import BackendError
from semantik_realtime.native_threads import is_patched

logger = logging.getLogger(__name__)

KEEP_SECONDS = 60.0
"""How long the server keeps a number; the next one comes after a few seconds."""


class Canary:
    """Writes and publishes numbers that grow. Lives on one loop.

    Args:
        writer: the writer of this process.
        connect: makes a connection that is not connected yet, for a process that writes nothing.
        channel_of: the channel of a topic.
        timeout_seconds: deadline of a command without the writer.
    """

    def __init__(
        self,
        writer: Writer,
        connect: Callable[[], Any],
        channel_of: Callable[[str], str],
        timeout_seconds: float,
    ) -> None:
        self.channel = channel_of("canary:" + secrets.token_hex(6))
        """Where the numbers are published."""
        self.key = self.channel + ":canary"
        """The hash with the newest number, in its field ``number``."""
        self.written = 0
        """The newest number that the writer has written; a reader that does not find it, or a later
        one, is on another server. 0: none was written, so there is nothing to find."""
        self._writer = writer
        self._connect = connect
        self._timeout = timeout_seconds
        # The newest number that was tried.
        self._number = 0

    @property
    def lineage(self) -> int:
        """Grows with each new connection of the writer: it may lead to another server."""
        return self._writer.connections

    async def send(self) -> bytes:
        """Write the next number and publish it; return the message that the subscriber gets.

        A process that has written nothing yet, or whose writes fail, only publishes it, over a
        new connection: it leads to where the address leads now.

        Raises:
            BackendError, RedisError, OSError, TimeoutError: neither was possible.
        """
        self._number += 1
        number = self._number
        if not await self.write(number):
            await self._publish(number)
        return b"%d" % number

    async def write(self, number: int = 0) -> bool:
        """Write ``number``, or the next one, with the writer. Return False if that failed."""
        if not number:
            self._number += 1
            number = self._number
        # Beside greenlets a thread of the executor is one of them, and cannot block.
        if not self._writer.connections or is_patched():
            return False
        args = (self.channel, number, milliseconds(KEEP_SECONDS))
        try:
            await keep_cancellation(asyncio.to_thread(self._writer.run, CANARY, [self.key], *args))
        except BackendError as error:
            logger.debug("canary: not written error=%s", error)
            return False
        self.written = max(self.written, number)
        return True

    async def _publish(self, number: int) -> None:
        connection = self._connect()
        try:
            async with asyncio.timeout(self._timeout):
                await keep_cancellation(connection.connect())
                command = ("PUBLISH", self.channel, str(number))
                await keep_cancellation(connection.send_command(*command, check_health=False))
                await keep_cancellation(connection.read_response())
        finally:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await keep_cancellation(connection.disconnect(nowait=True))
