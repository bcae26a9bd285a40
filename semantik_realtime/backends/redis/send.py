"""Sends commands together, on one connection of redis-py, and reads their replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import BusyLoadingError, ResponseError

from semantik_realtime.cancellation import keep_cancellation


def pack(commands: Sequence[Sequence[Any]]) -> bytes:
    """Encode commands in the server's protocol, in one piece.

    redis-py would send pieces of 6 kB, and after each of them another thread of
    the process may hold the interpreter for 5 ms.
    """
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            value = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)


def send_all(connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Send commands together; return the replies in order, an error of the server among them."""
    connection.send_packed_command([pack(commands)])
    return read_all(connection, len(commands))


def read_all(connection: Any, count: int) -> list[Any]:
    """Return the replies to ``count`` commands that were sent, as `send_all`."""
    replies: list[Any] = []
    for _ in range(count):
        try:
            replies.append(connection.read_response())
        except ResponseError as error:
            replies.append(error)
        except BusyLoadingError as error:
            # redis-py takes it for a broken connection, and closes it.
            return [*replies, *[error] * (count - len(replies))]
    return replies


async def send_all_async(connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Do as `send_all`, on an asyncio connection."""
    await connection.send_packed_command([pack(commands)])
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
        except BusyLoadingError as error:
            return [*replies, *[error] * (len(commands) - len(replies))]
    return replies


async def publish_anew(connection: Any, channel: str, text: str) -> None:
    """Publish on an asyncio connection that is not connected yet, and close it."""
    try:
        await keep_cancellation(connection.connect())
        for reply in await keep_cancellation(
            send_all_async(connection, [("PUBLISH", channel, text)])
        ):
            if isinstance(reply, Exception):
                raise reply
    finally:
        await keep_cancellation(connection.disconnect(nowait=True))
