"""Follow a topic from Python, over a real WebSocket, for as long as it takes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)
from websockets.uri import parse_uri

from semantik_realtime.core.fold import View
from semantik_realtime.core.session import SUBPROTOCOL, CloseCode
from semantik_realtime.core.topic import check_topic
from semantik_realtime.errors import AccessError, InvalidInput

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
_PASSING = {408, 425, 429}
"""HTTP statuses below 500 that are over soon."""


class Update(msgspec.Struct, frozen=True):
    """Something changed.

    ``connection`` is ``live``, ``reconnecting``, or ``degraded`` since
    ``since`` (RFC 3339): then ``view.states`` has the host's record over what
    the log has told. ``events`` are what is new, or with ``replayed`` the
    history that came with a snapshot; ``view`` is always current, the same
    object every time. ``reason`` says why it is reconnecting, for people.
    """

    connection: str
    view: View
    events: list[dict[str, Any]] = []
    replayed: bool = False
    since: str | None = None
    reason: str = ""


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
        InvalidInput: ``url`` is no WebSocket's, or its server has no such one.
        AccessError: the server refuses the credential or the topic, for good.
    """
    view = View(check_topic(topic))
    try:
        parse_uri(url)
    except (InvalidURI, ValueError) as error:
        raise _wrong(url, getattr(error, "msg", str(error))) from None
    was_there = False
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
                    was_there, tries = True, 0
                    yield update
                return
        except ConnectionClosed as closed:
            reason = "the connection broke"
            if closed.rcvd is not None:
                reason = f"{closed.rcvd.reason} ({closed.rcvd.code})"
                if closed.rcvd.code in _FINAL:
                    raise AccessError(reason) from None
        except InvalidStatus as refused:
            status = refused.response.status_code
            reason = f"the server answered {status} {refused.response.reason_phrase}".rstrip()
            if status in (401, 403):
                # What servers say of a page that may not connect, and some of a path they lack.
                raise AccessError(str(_wrong(url, reason))) from None
            # Where it was served once, a proxy says so while the servers are changed.
            if status < 500 and status not in _PASSING and not was_there:
                raise _wrong(url, reason) from None
        except InvalidURI as error:
            raise _wrong(url, f"the server leads elsewhere, and there {error.msg}") from None
        except (OSError, WebSocketException) as error:
            reason = str(error) or "no answer in time"
        view.synced = False
        yield Update("reconnecting", view, reason=reason)
        tries += 1
        longest = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(tries, 10))
        await asyncio.sleep(random.uniform(0, longest))  # noqa: S311


def _wrong(url: str, reason: str) -> InvalidInput:
    # Without the query, where a credential may be.
    shown = url.partition("?")[0]
    return InvalidInput(f"{shown}: {reason}; expected is ws://host:port/realtime/ws or wss://…")


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
