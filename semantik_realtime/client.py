"""Follow a topic from Python, over a real WebSocket, for as long as it takes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException

from semantik_realtime.core.fold import View
from semantik_realtime.core.session import SUBPROTOCOL, CloseCode
from semantik_realtime.core.topic import check_topic
from semantik_realtime.errors import AccessError

OPEN_SECONDS = 10.0
WELCOME_SECONDS = 15.0
"""Longer than a server waits for a credential, to hear what it says then."""
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
MISSED_HEARTBEATS = 2.5

_FINAL = {
    CloseCode.TOO_BIG,
    CloseCode.BAD_FRAME,
    CloseCode.UNAUTHENTICATED,
    CloseCode.EXPIRED,
    CloseCode.FORBIDDEN,
    CloseCode.AUTH_TIMEOUT,
}


class Update(msgspec.Struct, frozen=True):
    """Something changed.

    ``connection`` is ``live``, ``reconnecting``, or ``degraded`` since
    ``since`` (RFC 3339): then ``view.states`` has the host's record over what
    the log has told. ``events`` are what is new, or with ``replayed`` the
    history that came with a snapshot; ``view`` is always current, the same
    object every time.
    """

    connection: str
    view: View
    events: list[dict[str, Any]] = []
    replayed: bool = False
    since: str | None = None


async def watch(
    url: str, topic: str, *, token: str | None = None, history: int = 0
) -> AsyncGenerator[Update]:
    """Follow ``topic`` through the server at ``url`` (``ws://host/realtime/ws``).

    Each event comes once and in order, through any number of reconnects;
    waits between tries are random and grow to 30 s, without end. Ends when
    the topic is deleted. Close it with ``aclosing`` to end the connection at
    once.

    Raises:
        TopicError: ``topic`` is outside the grammar.
        AccessError: the server refuses the credential or the topic, for good.
    """
    view = View(check_topic(topic))
    tries = 0
    while True:
        try:
            async with connect(
                url,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                additional_headers={"Authorization": f"Bearer {token}"} if token else None,
                open_timeout=OPEN_SECONDS,
                close_timeout=1.0,
                max_size=None,
            ) as socket:
                async for update in _follow(socket, view, history):
                    tries = 0
                    yield update
                return
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            if code in _FINAL:
                reason = closed.rcvd.reason if closed.rcvd else ""
                raise AccessError(f"{reason} ({code})") from None
        except (OSError, TimeoutError, InvalidHandshake, WebSocketException) as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code == 403:
                raise AccessError("the server refuses the connection (403)") from None
        view.synced = False
        yield Update("reconnecting", view)
        tries += 1
        longest = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(tries, 10))
        await asyncio.sleep(random.uniform(0, longest))  # noqa: S311


async def _follow(socket: ClientConnection, view: View, history: int) -> AsyncIterator[Update]:
    """One connection's worth; returns when the topic is gone."""
    silence_seconds = WELCOME_SECONDS
    link, since = "live", None

    def update(events: list[dict[str, Any]], replayed: bool = False) -> Update:
        return Update(link, view, events, replayed, since)

    while True:
        async with asyncio.timeout(silence_seconds):
            frame = json.loads(await socket.recv())
        match frame.get("op"):
            case "welcome":
                silence_seconds = frame["heartbeat_seconds"] * MISSED_HEARTBEATS
                await _subscribe(socket, view, history)
            case "sync" if frame["topic"] == view.topic:
                is_snapshot = frame["mode"] == "snapshot"
                events = view.sync(frame)
                if events is None:
                    await _subscribe(socket, view, history)
                else:
                    yield update(events, replayed=is_snapshot)
            case "events" if view.topic in frame["topics"]:
                events = view.batch(frame["topics"][view.topic])
                if events is None:
                    await _subscribe(socket, view, history)
                elif events:
                    yield update(events)
            case "tops" if view.topic in frame["topics"]:
                if view.behind(frame["topics"][view.topic]):
                    await _subscribe(socket, view, history)
            case "degraded":
                link, since = "degraded", frame["since"]
                yield update([])
            case "provisional" if frame["topic"] == view.topic:
                if view.provisional(frame["states"]):
                    yield update([])
            case "restored":
                link, since = "live", None
                view.restored()
                yield update([])
            case "denied" if frame["topic"] == view.topic:
                raise AccessError(f"{frame['message']} ({view.topic})")
            case "gone" if frame["topic"] == view.topic:
                return


async def _subscribe(socket: ClientConnection, view: View, history: int) -> None:
    await socket.send(
        json.dumps({"op": "subscribe", "topics": {view.topic: view.cursor}, "history": history})
    )
