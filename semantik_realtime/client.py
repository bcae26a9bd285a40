"""Follow a topic from Python over a WebSocket, through any number of reconnects."""

from __future__ import annotations

import asyncio
import json
import math
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

from semantik_realtime.backoff import Backoff
from semantik_realtime.core.fold import Gap, View
from semantik_realtime.core.lifecycle import is_finished
from semantik_realtime.core.session import SUBPROTOCOL, CloseCode
from semantik_realtime.core.topic import name_topic
from semantik_realtime.errors import AccessError, InvalidInput
from semantik_realtime.urls import find_fault, is_loopback, mask_text, mask_urls

OPEN_SECONDS = 10.0
WELCOME_SECONDS = 15.0
"""Longer than the 10 s that a server waits for a credential, so that its close code arrives."""
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
LINGER_SECONDS = 5.0
"""From the end of a job to the end of its updates: a new attempt may begin."""
MISSED_HEARTBEATS = 2.5
"""A server that is silent for this many heartbeats counts as gone."""

_FINAL_CLOSE_CODES = {
    CloseCode.TOO_BIG,
    CloseCode.BAD_FRAME,
    CloseCode.UNAUTHENTICATED,
    CloseCode.EXPIRED,
    CloseCode.FORBIDDEN,
    CloseCode.AUTH_TIMEOUT,
    CloseCode.FLOOD,
}
_TEMPORARY_STATUSES = {408, 425, 429}
"""HTTP statuses below 500 after which a retry can succeed."""


class Update(msgspec.Struct, frozen=True):
    """A change of the topic or of the connection."""

    connection: str
    """``live``, ``reconnecting``, or ``degraded``: connected, but the server's backend is away.
    Then ``view.states`` has provisional states from the host's record."""
    view: View
    """What the client knows of the topic: the same object in every update, always current."""
    events: list[dict[str, Any]] = []
    """The new events, oldest first."""
    replayed: bool = False
    """Whether ``events`` is the history of a snapshot, which ``view`` already includes."""
    since: str | None = None
    """When the backend went away, RFC 3339; None unless ``degraded``."""
    reason: str = ""
    """Why the client is reconnecting, for people; else empty."""
    gap: Gap | None = None
    """What the server did not send one by one before ``events``: it is in ``view``. None: nothing.
    In sum: ``view.conflated``, and the snapshots."""


async def watch(
    url: str,
    topic: str,
    *,
    token: str | None = None,
    history: int = 0,
    connect_to: tuple[str, int] | None = None,
) -> AsyncGenerator[Update]:
    """Follow ``topic`` through the server at ``url`` (``ws://host/realtime/ws``).

    Yields each event once and in order, and where some are left out the `Update`
    says so. After a failure it reconnects, without end, after a random wait of at
    most 30 s. Ends when the topic is deleted, and when its job and the job's
    children have ended: 5 s later, unless a new attempt begins, and at once if it
    starts with the end. A feed never ends.
    Wrap it in ``aclosing`` to close the connection when you stop iterating.

    Args:
        url: Of the server's WebSocket.
        topic: Name of the topic, for example ``job:42``, or its kind and a plain id:
            ``job:import:42``. In ``view.states`` the key is the plain id.
        token: Sent as bearer token; None: no credential.
        history: The most events to get with a snapshot, 0 to 1000.
        connect_to: Host and port to connect to in place of the URL's, without a proxy of the
            environment; requests and certificates are still for the URL's host.

    Raises:
        TopicError: ``topic`` is not a topic name.
        InvalidInput: ``url`` is not a WebSocket URL, the server has no WebSocket there, or the
            environment names a SOCKS proxy and ``python-socks`` is not installed.
        AccessError: The server refuses the credential or the topic for good.
    """
    view = View(name_topic(topic))
    try:
        parse_uri(url)
    except (InvalidURI, ValueError) as error:
        # The message of a ValueError may have a part of the password.
        reason = getattr(error, "msg", None) or find_fault(url) or "it cannot be parsed"
        raise _invalid_url(url, reason) from None
    address: dict[str, Any] = (
        {} if connect_to is None else {"host": connect_to[0], "port": connect_to[1]}
    )
    was_connected = False
    backoff = Backoff(FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, jitter=1.0)
    while True:
        is_slow = False
        try:
            async with connect(
                url,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                additional_headers={"Authorization": f"Bearer {token}"} if token else None,
                open_timeout=OPEN_SECONDS,
                close_timeout=1.0,
                max_size=None,
                proxy=None if connect_to or is_loopback(parse_uri(url).host) else True,
                **address,
            ) as socket:
                if token is None:
                    # The server need not wait for a credential.
                    await socket.send('{"op":"auth","token":null}')
                async for update in _follow(socket, view, history):
                    was_connected = True
                    backoff.reset()
                    yield update
                return
        except ConnectionClosed as closed:
            reason = "the connection broke"
            if closed.rcvd is not None:
                reason = f"{closed.rcvd.reason} ({closed.rcvd.code})"
                if closed.rcvd.code in _FINAL_CLOSE_CODES:
                    raise AccessError(reason) from None
                is_slow = _is_slow(closed.rcvd.code)
        except InvalidStatus as refused:
            status = refused.response.status_code
            reason = f"the server answered {status} {refused.response.reason_phrase}".rstrip()
            if status in (401, 403):
                # A refused origin; some servers answer like this for an unknown path too.
                raise AccessError(str(_invalid_url(url, reason))) from None
            # After a successful connection the URL is right: a proxy may answer 404 while the
            # servers behind it restart.
            if status < 500 and status not in _TEMPORARY_STATUSES and not was_connected:
                raise _invalid_url(url, reason) from None
        except InvalidURI as error:
            raise _invalid_url(
                url, f"the server redirects to an invalid URL: {error.msg}"
            ) from None
        except ImportError as error:
            # A SOCKS proxy in the environment needs a package that is not installed.
            raise InvalidInput(f"{mask_urls(url)}: {error}") from None
        except (OSError, WebSocketException) as error:
            # That of a wrong proxy has the proxy's URL.
            reason = mask_text(str(error)) or "no answer in time"
        view.interrupt()
        yield Update("reconnecting", view, reason=reason)
        seconds = random.uniform(LONGEST_RETRY_SECONDS / 2, LONGEST_RETRY_SECONDS)  # noqa: S311
        await asyncio.sleep(seconds if is_slow else backoff.next_seconds())


def _is_slow(code: int) -> bool:
    """Return True if a retry may succeed, but not soon; unknown codes are of a later protocol."""
    return 4400 <= code <= 4499 and code != CloseCode.EVICTED


def _invalid_url(url: str, reason: str) -> InvalidInput:
    expected = "ws://host:port/realtime/ws or wss://…"
    return InvalidInput(f"{mask_urls(url)}: {reason}; expected: {expected}")


async def _follow(socket: ClientConnection, view: View, history: int) -> AsyncIterator[Update]:
    """Yield the updates of one connection; return when the topic is deleted or finished."""
    clock = asyncio.get_running_loop().time
    silence_seconds = WELCOME_SECONDS
    connection, since = "live", None
    # When the updates end; None: the job goes on. A new attempt clears it.
    ends_at: float | None = None
    linger_seconds = 0.0

    def update(
        events: list[dict[str, Any]], replayed: bool = False, gap: Gap | None = None
    ) -> Update:
        return Update(connection, view, events, replayed, since, gap=gap)

    while True:
        silent_at = clock() + silence_seconds
        try:
            async with asyncio.timeout_at(min(silent_at, ends_at or math.inf)):
                frame = json.loads(await socket.recv())
        except TimeoutError:
            if ends_at is not None and ends_at < silent_at:
                return
            raise
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
                    yield update(events, replayed=is_snapshot, gap=view.gap)
            case "events" if view.topic in frame["topics"]:
                offset = view.offset
                events = view.batch(frame["topics"][view.topic])
                if events is None:
                    await _subscribe(socket, view, history)
                elif view.offset != offset:
                    linger_seconds = LINGER_SECONDS
                    yield update(events, gap=view.gap)
            case "tops" if view.topic in frame["topics"]:
                if view.behind(frame["topics"][view.topic]):
                    await _subscribe(socket, view, history)
            case "degraded":
                connection, since = "degraded", frame["since"]
                yield update([])
            case "provisional" if frame["topic"] == view.topic:
                if view.provisional(frame["states"]):
                    yield update([])
            case "restored":
                connection, since = "live", None
                view.restored()
                yield update([])
            case "denied" if frame["topic"] == view.topic:
                raise AccessError(f"{frame['message']} ({view.topic})")
            case "gone" if frame["topic"] == view.topic:
                return
        is_current = view.synced and connection == "live" and not view.overlay
        if not is_current or not is_finished(view.topic, view.folded):
            ends_at = None
        elif ends_at is None:
            ends_at = clock() + linger_seconds


async def _subscribe(socket: ClientConnection, view: View, history: int) -> None:
    await socket.send(
        json.dumps({"op": "subscribe", "topics": {view.topic: view.cursor}, "history": history})
    )
