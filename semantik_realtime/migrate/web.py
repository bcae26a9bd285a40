"""A replacement for a self-made manager of WebSockets, in the application's own routes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from semantik_realtime.clock import now_text
from semantik_realtime.core.event import Cursor, Receipt
from semantik_realtime.core.limits import MAX_HISTORY
from semantik_realtime.core.session import TRANSIENT_CODES, CloseCode, close_reason
from semantik_realtime.core.topic import job_topic, plain_id, user_topic
from semantik_realtime.errors import BackendError
from semantik_realtime.hookspecs import Credentials, hookimpl
from semantik_realtime.migrate.updates import JobUpdates
from semantik_realtime.web.endpoints.peer import Peer
from semantik_realtime.web.endpoints.transport import CLOSE_SECONDS, run
from semantik_realtime.web.endpoints.websocket import COMPAT_PING_SECONDS
from semantik_realtime.web.hub.connection import Connection
from semantik_realtime.web.hub.ended import Ended
from semantik_realtime.web.hub.permission import Permissions
from semantik_realtime.web.realtime import Realtime
from semantik_realtime.web.tokens import CheckedIdentity
from semantik_realtime.web.wires.compat import CompatWire


class _AskedHost:
    """The host has decided when it called `connect`, for as long as the job has the same owner."""

    def __init__(self) -> None:
        # The first owner that the backend knew.
        self._owner: str | None = None

    async def authorize(self, user: str, topic: str, owner: str | None) -> bool:
        self._owner = self._owner or owner
        return owner in (None, user, self._owner)


class _HostAuthenticates:
    """The application's routes have authenticated before they call `WebSocketManager.connect`."""

    @hookimpl
    def authenticate(self, credentials: Credentials) -> None:
        return None


class WebSocketManager:
    """Serves the compatibility wire on sockets that the application's own routes accept.

    The route authenticates, checks whether the user may watch the job, and
    reads what the client sends, as before; this sends the messages. It checks
    no rights itself.

    Args:
        realtime: what ``Realtime().install(app)`` returned. Without it the
            object makes one of its own, which `startup` opens and `shutdown` closes.
    """

    def __init__(self, realtime: Realtime | None = None) -> None:
        self._given = realtime
        # Made by `startup` if none was given.
        self._own: Realtime | None = None
        self._stack = contextlib.AsyncExitStack()
        # What sends on each socket, with the event that ends it. Entries leave with the socket.
        self._serving: dict[WebSocket, tuple[asyncio.Task[None], asyncio.Event]] = {}

    @property
    def realtime(self) -> Realtime:
        """The realtime side: the given one, or the one that `startup` has opened."""
        found = self._given or self._own
        if found is None:
            raise RuntimeError("await startup() first, in the lifespan of the application")
        return found

    async def startup(self) -> None:
        """Start reading from the backend. Does nothing for a ``realtime`` that was given.

        Raises:
            ConfigError: a setting is wrong.
        """
        if self._given is None and self._own is None:
            own = Realtime(plugins=[_HostAuthenticates()])
            await self._stack.enter_async_context(own.web.lifespan(None))
            self._own = own

    async def shutdown(self) -> None:
        """End all connections, so that the pages reconnect elsewhere, and stop reading."""
        await self._stack.aclose()
        self._own = None

    async def connect(self, websocket: WebSocket, job_id: str, user_id: object) -> None:
        """Accept the socket, unless it is accepted, and send the job's messages from now on.

        Raises:
            TopicError: an id cannot be the name of a topic.
        """
        web, topic, user = self.realtime.web, job_topic(job_id), plain_id(user_id)
        if websocket.application_state is WebSocketState.CONNECTING:
            await websocket.accept()
        last_id = websocket.query_params.get("last_id")
        after = Cursor.parse(last_id) if last_id else None
        history = web.settings.compat_history

        async def send(frame: str) -> None:
            if WebSocketState.DISCONNECTED in (websocket.client_state, websocket.application_state):
                raise WebSocketDisconnect
            await websocket.send({"type": "websocket.send", "text": frame})

        connection = Connection(
            CompatWire(topic, now_text, after, words=web.words, history=history),
            web.hub,
            web.outage,
            Permissions(_AskedHost(), web.hub.top, web.hub.stats),
            CheckedIdentity(user),
            send,
            heartbeat_seconds=COMPAT_PING_SECONDS,
        )
        connection.subscribe(topic, None, MAX_HISTORY if after else history)
        done = asyncio.Event()
        serving = web.hub.spawn(self._serve(websocket, connection, done), "manager")
        self._serving[websocket] = serving, done

    async def disconnect(self, websocket: WebSocket, job_id: str, user_id: object) -> None:
        """Stop sending, when the client has gone. Idempotent."""
        serving, done = self._serving.pop(websocket, (None, None))
        if serving is not None and done is not None:
            done.set()
            await asyncio.wait((serving,), timeout=CLOSE_SECONDS)

    async def send_update(self, job_id: str, type: str, data: Mapping[str, Any]) -> None:
        """Send an update of a job; its state keeps what other processes have put there.

        While the backend is away the update waits in this process, and has only
        what ``data`` has.

        Raises:
            TopicError: an id cannot be the name of a topic.
        """
        realtime, job = self.realtime, plain_id(job_id)
        known = owner = None
        with contextlib.suppress(BackendError):
            snapshot = await realtime.backend.snapshot(job_topic(job), None, 0)
            owner = snapshot.owner
            if job in snapshot.states:
                known = msgspec.json.decode(snapshot.states[job])["state"]
        updates = JobUpdates(realtime, job, owner=owner, known=known)
        updates.send_update(type, data)
        await asyncio.to_thread(updates.flush)

    async def send_message(self, user_id: object, message: Mapping[str, Any]) -> Receipt:
        """Send ``{"type": …, "data": …}`` to the feed of a user.

        Raises:
            InvalidInput, BackendUnavailable: as `semantik_realtime.runtime.Runtime.publish`.
        """
        user = plain_id(user_id)
        return await self.realtime.publish(
            user_topic(user),
            str(message.get("type", "message")),
            data=message.get("data") or {},
            owner=user,
        )

    async def _serve(
        self, websocket: WebSocket, connection: Connection, done: asyncio.Event
    ) -> None:
        async def read(_: Connection) -> None:
            # The route reads the socket.
            await done.wait()
            connection.end(CloseCode.GOING_AWAY, "the route has ended")

        try:
            await run(self.realtime.web, connection, read, secrets.token_hex(8))
        except Ended as ended:
            if ended.code in TRANSIENT_CODES:
                # Without a close frame, after which these pages do not reconnect.
                Peer(websocket._receive).abort()
            elif ended.code is not CloseCode.GOING_AWAY:
                code = CloseCode.POLICY if ended.code >= 4000 else ended.code
                with contextlib.suppress(RuntimeError, OSError, TimeoutError):
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await websocket.close(int(code), close_reason(ended.reason))
        finally:
            self._serving.pop(websocket, None)
