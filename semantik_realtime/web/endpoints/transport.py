"""The life of a connection on any transport: count it, read and write, record how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.core.session import CloseCode
from semantik_realtime.errors import AccessError, BackendError, TopicError
from semantik_realtime.web.hub.connection import Connection
from semantik_realtime.web.hub.ended import Ended
from semantik_realtime.web.state import WebState

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
"""How long the last frames to a client may take."""
_CREDENTIAL_CODES = frozenset(
    {CloseCode.UNAUTHENTICATED, CloseCode.EXPIRED, CloseCode.FORBIDDEN, CloseCode.AUTH_TIMEOUT}
)
_BY_CLIENT = (WebSocketDisconnect, ClientDisconnect, OSError)


@contextlib.contextmanager
def counting_refusals(web: WebState) -> Iterator[None]:
    """Count a connection that is refused, by reason, and log a credential that was."""
    stats = web.hub.stats
    try:
        yield
    except Ended as ended:
        stats.count_refused(ended.code.name.lower())
        if ended.code in _CREDENTIAL_CODES:
            web.refusals.note_credential(ended.reason, ended.__cause__)
        raise
    except (AccessError, TopicError) as error:
        stats.count_refused("policy")
        if isinstance(error, AccessError):
            web.refusals.note_credential(str(error), error)
        raise
    except BackendError:
        stats.count_refused("server_error")
        raise


async def run(
    web: WebState,
    connection: Connection,
    read: Callable[[Connection], Coroutine[Any, Any, None]],
    connection_id: str,
) -> None:
    """Read and write until one of the two ends, as one of the user's connections.

    ``read`` may raise `Ended` too. Returns when the client or the network has ended the connection.

    Raises:
        Ended: the server has ended it. If the user has too many connections,
            nothing was written.
    """
    user, hub = connection.identity.user, web.hub
    with counting_refusals(web):
        if not await web.limiter.admit(user, connection_id):
            connection.close()
            raise Ended(CloseCode.TOO_MANY_CONNECTIONS, "too many connections of this user")
    loop = asyncio.get_running_loop()
    writer = loop.create_task(connection.write(), name="semantik-realtime-writer")
    reader = loop.create_task(_read(connection, read), name="semantik-realtime-reader")
    hub.register(connection)
    try:
        await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        if connection.ended is not None and not writer.done():
            # The answer to the last frame must still be sent.
            await asyncio.wait((writer,), timeout=CLOSE_SECONDS)
    finally:
        hub.unregister(connection)
        connection.close()
        web.limiter.release(user, connection_id)
        await stop_tasks((writer, reader))
    if connection.ended is None:
        ended = [task for task in (writer, reader) if task.done() and not task.cancelled()]
        faults = [task.exception() for task in ended]
        if not any(isinstance(fault, _BY_CLIENT) for fault in faults):
            logger.error("transport: connection failed", exc_info=faults[0] if faults else None)
            connection.end(CloseCode.SERVER_ERROR, "server error")
    if connection.ended is not None:
        hub.stats.count_closed(connection.ended.code.name.lower())
        raise connection.ended
    hub.stats.count_closed("client")


async def _read(
    connection: Connection, read: Callable[[Connection], Coroutine[Any, Any, None]]
) -> None:
    try:
        await read(connection)
    except Ended as ended:
        connection.end(ended.code, ended.reason)
