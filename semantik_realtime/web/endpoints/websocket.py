"""WebSocket endpoints: both wires over the same connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import sys
import time

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from semantik_realtime.clock import now_text
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.limits import MAX_HISTORY
from semantik_realtime.core.session import (
    TRANSIENT_CODES,
    Action,
    Authenticate,
    Close,
    CloseCode,
    Send,
    Session,
    SessionLimits,
    Subscribe,
    Unsubscribe,
    close_reason,
    units_of,
)
from semantik_realtime.core.topic import name_topic, user_topic
from semantik_realtime.core.topic_token import is_same_user
from semantik_realtime.errors import AccessError, BackendError, TopicError
from semantik_realtime.hookspecs import Credentials
from semantik_realtime.web.credentials import accepted_subprotocol, credentials_of, with_token
from semantik_realtime.web.endpoints.inbox import Inbox
from semantik_realtime.web.endpoints.peer import Peer
from semantik_realtime.web.endpoints.transport import CLOSE_SECONDS, counting_refusals, run
from semantik_realtime.web.hub.connection import Connection
from semantik_realtime.web.hub.ended import Ended
from semantik_realtime.web.state import WebState
from semantik_realtime.web.tokens import CheckedIdentity
from semantik_realtime.web.wires.compat import CompatWire
from semantik_realtime.web.wires.messages import answer
from semantik_realtime.web.wires.native import NativeWire
from semantik_realtime.web.wires.wire import Wire

logger = logging.getLogger(__name__)

COMPAT_PING_SECONDS = 30.0
LINGER_SECONDS = 3.0
"""How long the socket may stay open after the server has ended a connection."""
_CUT_OFF = (CloseCode.FLOOD, CloseCode.BAD_FRAME, CloseCode.TOO_BIG)


async def serve_native(websocket: WebSocket, web: WebState) -> None:
    """Serve one connection of `semantik.realtime.v1`, from handshake to close."""
    web.server_limits.check(websocket)
    if not web.access.allows_origin(websocket):
        await _refuse_page(websocket, web, CloseCode.FORBIDDEN)
        return
    if web.unauthenticated.is_full:
        web.hub.stats.count_refused("too_many_connections")
        await _refuse(websocket, 503)
        return
    settings = web.settings
    credentials = credentials_of(websocket, settings.token_cookie)
    if not settings.auth_frame and await _is_anonymous(credentials, web):
        web.hub.stats.count_refused("unauthenticated")
        await _refuse(websocket, 401)
        return
    await _accept(websocket)
    limits = SessionLimits(topics=settings.max_topics, heartbeat_seconds=settings.heartbeat_seconds)
    session = Session(secrets.token_hex(8), limits, time.monotonic())

    inbox = Inbox(websocket, limits)

    async def read(connection: Connection) -> None:
        while connection.ended is None:
            text = await inbox.next_frame()
            # Topics that were denied or deleted no longer count.
            session.retain(connection.topics)
            actions = session.receive(text)
            inbox.charge(units_of(text, actions))
            for action in actions:
                await _carry_out(action, session, connection, web, credentials)

    try:
        with counting_refusals(web):
            identity = await _open_session(websocket, web, session, inbox, credentials)
        connection = _connect(websocket, web, NativeWire(), identity)
        connection.post(*_frames(session.authenticated()))
        await run(web, connection, read, session.id)
    except Ended as ended:
        await _end(websocket, ended, ended.code)
    except BackendError as error:
        logger.warning("websocket: not opened error=%s", error)
        await _close(websocket, CloseCode.SERVER_ERROR, "server error")
    except WebSocketDisconnect:
        pass


async def serve_compat(websocket: WebSocket, web: WebState, job_id: str | None = None) -> None:
    """Serve one connection of the compatibility wire, for a job or else for the user's own feed.

    These clients reconnect only after an end without a close frame.
    """
    web.server_limits.check(websocket)
    if not web.access.allows_origin(websocket):
        await _refuse_page(websocket, web, CloseCode.POLICY)
        return
    if web.unauthenticated.is_full:
        web.hub.stats.count_refused("too_many_connections")
        await _refuse(websocket, 503)
        return
    await _accept(websocket)
    last_id = websocket.query_params.get("last_id")
    after = Cursor.parse(last_id) if last_id else None
    try:
        with counting_refusals(web):
            credentials = credentials_of(websocket, web.settings.token_cookie)
            with web.unauthenticated.checking():
                identity = await web.access.authenticate(credentials)
            topic = user_topic(identity.user) if job_id is None else name_topic(f"job:{job_id}")
            permission = await web.permissions.wait(identity.user, topic)
            if not permission.is_allowed:
                code = CloseCode.POLICY if permission.is_final else CloseCode.TOO_MANY_CONNECTIONS
                raise Ended(code, "not yours, or not there")
        history = web.settings.compat_history
        wire = CompatWire(topic, now_text, after, words=web.words, history=history)
        inbox = Inbox(websocket, SessionLimits())

        async def read(connection: Connection) -> None:
            while connection.ended is None:
                text = await inbox.next_frame()
                inbox.charge(units_of(text))
                connection.post(*answer(text, now_text()))

        connection = _connect(websocket, web, wire, identity, COMPAT_PING_SECONDS)
        # Always with a snapshot: these clients need a status before anything else.
        connection.subscribe(topic, None, MAX_HISTORY if after else history)
        await run(web, connection, read, secrets.token_hex(8))
    except (AccessError, TopicError) as error:
        await _close(websocket, CloseCode.POLICY, str(error))
    except Ended as ended:
        if ended.code in TRANSIENT_CODES:
            _drop(websocket)
        else:
            code = CloseCode.POLICY if ended.code >= 4000 else ended.code
            await _end(websocket, ended, code)
    except BackendError as error:
        logger.warning("websocket: compat connection dropped error=%s", error)
        _drop(websocket)
    except WebSocketDisconnect:
        pass


async def _refuse_page(websocket: WebSocket, web: WebState, code: CloseCode) -> None:
    """Refuse a page of an origin that is not allowed.

    Before accepting, so the server answers 403. In development a browser shall
    show the reason, and it shows only that of a connection that was accepted.
    """
    web.hub.stats.count_refused("origin")
    if web.settings.is_development:
        await websocket.accept(subprotocol=accepted_subprotocol(websocket))
        await _close(websocket, code, web.explain_refusal(websocket))
    else:
        await websocket.close()


async def _is_anonymous(credentials: Credentials, web: WebState) -> bool:
    """Return True if a handshake has no credential, and the host does not know the user either."""
    if credentials.token is not None:
        return False
    try:
        with web.unauthenticated.checking():
            await web.access.authenticate(credentials)
    except AccessError:
        return True
    except BackendError:
        # Nobody can tell now, which the client learns by the close code.
        pass
    return False


async def _refuse(websocket: WebSocket, status: int) -> None:
    """Answer a handshake with an HTTP status; with 403 where the web server knows no other."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(Response(status_code=status))
    else:
        await websocket.close()


async def _accept(websocket: WebSocket) -> None:
    peer = _peer(websocket)
    peer.limit_reads()
    peer.end_if_vanished()
    peer.send_at_once()
    await websocket.accept(subprotocol=accepted_subprotocol(websocket))


def _drop(websocket: WebSocket) -> None:
    """End without a close frame, which ASGI has no message for.

    Every uvicorn cuts the socket when its own ClientDisconnected leaves the
    application. When the application just returns, some versions do so too
    (0.39, 0.54), and some leave the connection open (0.34) until they send a
    close frame.
    """
    _abort_later(websocket)
    uvicorn = sys.modules.get("uvicorn.protocols.utils")
    if uvicorn is not None:
        raise uvicorn.ClientDisconnected


async def _open_session(
    websocket: WebSocket,
    web: WebState,
    session: Session,
    inbox: Inbox,
    credentials: Credentials,
) -> CheckedIdentity:
    """Authenticate by the handshake, or else by the first frame, before the deadline.

    Raises:
        Ended: the credential was refused, or none came in time.
        BackendError: nobody can tell now.
    """
    if credentials.token is None:
        # The host may know the user by other means, and with authentication off everybody passes.
        with contextlib.suppress(AccessError), web.unauthenticated.checking():
            return await web.access.authenticate(credentials)
        token = await _wait_for_token(websocket, web, session, inbox)
        credentials = with_token(credentials, token)
    try:
        with web.unauthenticated.checking():
            return await web.access.authenticate(credentials)
    except AccessError as error:
        raise _refusal(session, error) from error


async def _wait_for_token(
    websocket: WebSocket, web: WebState, session: Session, inbox: Inbox
) -> str:
    """Return the token of the first frame, as one of the sockets that wait for theirs.

    Raises:
        Ended: it did not come in time, or too many sockets wait.
    """
    address = websocket.client.host if websocket.client else ""
    try:
        async with asyncio.timeout(session.auth_seconds_left(time.monotonic())) as deadline:
            with web.unauthenticated.waiting(address, deadline) as waiting:
                return await _first_token(websocket, session, inbox)
    except TimeoutError:
        if waiting.is_crowded_out:
            code = CloseCode.TOO_MANY_CONNECTIONS
            raise Ended(code, "too many connections without a credential") from None
        raise _ended(session.tick(math.inf)) from None


async def _first_token(websocket: WebSocket, session: Session, inbox: Inbox) -> str:
    while True:
        text = await inbox.next_frame()
        actions = session.receive(text)
        # Without what the server does for it: that of the first credential is free.
        inbox.charge(units_of(text))
        for action in actions:
            match action:
                case Authenticate(token):
                    return token
                case Send(frame):
                    await websocket.send_text(frame)
                case Close():
                    raise _ended([action])


async def _carry_out(
    action: Action,
    session: Session,
    connection: Connection,
    web: WebState,
    credentials: Credentials,
) -> None:
    match action:
        case Send(frame):
            connection.post(frame)
        case Subscribe(topics, history):
            for topic, cursor in topics.items():
                connection.subscribe(topic, cursor, history)
        case Unsubscribe(topics):
            for topic in topics:
                connection.unsubscribe(topic)
        case Authenticate(token):
            try:
                fresh = await web.access.authenticate(with_token(credentials, token))
            except AccessError as error:
                ended = _refusal(session, error)
                connection.end(ended.code, ended.reason)
                return
            except BackendError as error:
                # Nobody can tell now; the old credential stays valid.
                connection.post(session.error(error.code, "not checked, try again").frame)
                return
            if is_same_user(fresh.user, connection.identity.user):
                connection.reauthorize(fresh)
            else:
                connection.end(CloseCode.FORBIDDEN, "the token is another user's")
        case Close(code, reason):
            connection.end(code, reason)


def _connect(
    websocket: WebSocket,
    web: WebState,
    wire: Wire,
    identity: CheckedIdentity,
    heartbeat_seconds: float | None = None,
) -> Connection:
    async def send(frame: str) -> None:
        await websocket.send({"type": "websocket.send", "text": frame})

    return Connection(
        wire,
        web.hub,
        web.outage,
        web.permissions,
        identity,
        send,
        heartbeat_seconds=heartbeat_seconds or web.settings.heartbeat_seconds,
    )


def _refusal(session: Session, error: AccessError) -> Ended:
    if error.code == "forbidden":
        # No other credential would help, which is the one refusal that the session does not know.
        return Ended(CloseCode.FORBIDDEN, str(error))
    return _ended(session.rejected(error.code == "expired", str(error)))


def _ended(actions: list[Action]) -> Ended:
    [close] = actions
    assert isinstance(close, Close)
    return Ended(close.code, close.reason)


async def _close(websocket: WebSocket, code: CloseCode, reason: str) -> None:
    _abort_later(websocket)
    with contextlib.suppress(RuntimeError, OSError, TimeoutError, WebSocketDisconnect):
        async with asyncio.timeout(CLOSE_SECONDS):
            # A longer reason raises, and the client would get no close frame.
            await websocket.close(int(code), close_reason(reason))


async def _end(websocket: WebSocket, ended: Ended, code: CloseCode) -> None:
    """Close with ``code``, and leave what a client goes on sending in the network."""
    await _close(websocket, code, ended.reason)
    if ended.code in _CUT_OFF:
        # The web server would go on reading the flood until the client answers the close frame.
        _peer(websocket).stop_reading()


def _abort_later(websocket: WebSocket) -> None:
    # The web server waits longer, or without end, for a client that does not answer the close
    # frame, or reads nothing.
    asyncio.get_running_loop().call_later(LINGER_SECONDS, _peer(websocket).abort)


def _peer(websocket: WebSocket) -> Peer:
    # Starlette has no public name for it.
    return Peer(websocket._receive)


def _frames(actions: list[Action]) -> list[str]:
    return [action.frame for action in actions if isinstance(action, Send)]
