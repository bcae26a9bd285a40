"""What every transport does with a connection: seat it, read and write, count how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from semantik_realtime.core.session import CloseCode
from semantik_realtime.errors import AccessError, BackendError, TopicError
from semantik_realtime.web.hub.connection import Connection, Ended
from semantik_realtime.web.state import WebState

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
"""How long a client may take to hear why it ends."""
_BY_CLIENT = (WebSocketDisconnect, ClientDisconnect, OSError)


@contextlib.contextmanager
def counting_refusals(server: WebState) -> Iterator[None]:
    """Count whoever is not let in, by why."""
    refused = server.hub.stats.refused
    try:
        yield
    except Ended as ended:
        refused[ended.code.name.lower()] += 1
        raise
    except (AccessError, TopicError):
        refused["policy"] += 1
        raise
    except BackendError:
        refused["server_error"] += 1
        raise


async def run(
    server: WebState,
    connection: Connection,
    read: Callable[[Connection], Coroutine[Any, Any, None]],
    seat: str,
) -> None:
    """Read and write until one of them ends, with a seat of the user's.

    Returns when the client or the network has ended it.

    Raises:
        Ended: by the server, for whatever reason; no free seat is one, and
            then nothing was written.
    """
    user, hub = connection.identity.user, server.hub
    with counting_refusals(server):
        if not await server.seats.take(user, seat):
            connection.close()
            raise Ended(CloseCode.TOO_MANY_CONNECTIONS, "too many connections of this user")
    loop = asyncio.get_running_loop()
    writer = loop.create_task(connection.write(), name="semantik-realtime-writer")
    reader = loop.create_task(read(connection), name="semantik-realtime-reader")
    hub.enter(connection)
    try:
        await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        if connection.ended is not None and not writer.done():
            # What was answered to the last frame is still to be sent.
            await asyncio.wait((writer,), timeout=CLOSE_SECONDS)
    finally:
        hub.leave(connection)
        connection.close()
        server.seats.give_back(user, seat)
        writer.cancel()
        reader.cancel()
        await asyncio.wait((writer, reader))
    if connection.ended is None:
        faults = [task.exception() for task in (writer, reader) if not task.cancelled()]
        if not any(isinstance(fault, _BY_CLIENT) for fault in faults):
            logger.error("transport: connection failed", exc_info=faults[0])
            connection.end(CloseCode.SERVER_ERROR, "server error")
    closed = hub.stats.closed
    if connection.ended is not None:
        closed[connection.ended.code.name.lower()] += 1
        raise connection.ended
    closed["client"] += 1
