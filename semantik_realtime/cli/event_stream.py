"""Follow a job through the server-sent events of a web server, with reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import quote, urlsplit

from semantik_realtime.client import Update
from semantik_realtime.core.fold import View
from semantik_realtime.core.lifecycle import is_finished
from semantik_realtime.errors import AccessError

CONNECT_SECONDS = 10.0
"""For a connection, and for the beginning of the response."""
SILENCE_SECONDS = 45.0
"""A stream has a comment every 15 s."""
RETRY_SECONDS = 0.5


async def watch_stream(
    url: str, topic: str, *, token: str | None, connect_to: tuple[str, int]
) -> AsyncGenerator[Update]:
    """Follow ``topic`` at ``url`` (``http://host/realtime/events``), until its job has ended.

    The same updates as `semantik_realtime.client.watch` yields.

    Raises:
        AccessError: the server refuses the credential or the topic.
    """
    view = View(topic)
    last_id = ""
    while True:
        async with contextlib.aclosing(_stream(url, topic, token, connect_to, last_id)) as parts:
            async for id, frame in parts:
                last_id = id or last_id
                match frame["op"]:
                    case "sync" if frame["mode"] in ("snapshot", "replay"):
                        events = view.sync(frame)
                    case "events":
                        events = view.batch(frame["topics"][topic])
                    case "denied":
                        raise AccessError(f"{frame['message']} ({topic})")
                    case "degraded":
                        yield Update("degraded", view, since=frame["since"])
                        continue
                    case _:
                        continue
                if events is None:
                    break
                is_snapshot = frame.get("mode") == "snapshot"
                yield Update("live", view, events, replayed=is_snapshot, gap=view.gap)
        if is_finished(topic, view.folded):
            return
        view.interrupt()
        yield Update("reconnecting", view, reason="the stream of events ended")
        await asyncio.sleep(RETRY_SECONDS)


async def _stream(
    url: str, topic: str, token: str | None, connect_to: tuple[str, int], last_id: str
) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Yield the ids and frames of one connection, until it ends.

    A thread reads it; it ends with the connection, which is closed with this generator.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def put(line: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(lines.put_nowait, line)

    try:
        raw = await asyncio.to_thread(_connect, url, connect_to)
    except OSError:
        return
    try:
        response = await asyncio.to_thread(_request, raw, url, topic, token, last_id)
        if response is None:
            return
        reader = threading.Thread(target=_read, args=(response, put), daemon=True)
        reader.start()
        id = ""
        while (line := await lines.get()) is not None:
            name, _, value = line.partition(": ")
            if name == "id":
                id = value
            elif name == "data":
                yield id, json.loads(value)
    finally:
        # The thread's read ends.
        with contextlib.suppress(OSError):
            raw.shutdown(socket.SHUT_RDWR)
        raw.close()


def _connect(url: str, connect_to: tuple[str, int]) -> socket.socket:
    """Connect to an address that is not the URL's. Raises OSError."""
    place = urlsplit(url)
    raw = socket.create_connection(connect_to, CONNECT_SECONDS)
    if place.scheme == "https":
        raw = ssl.create_default_context().wrap_socket(raw, server_hostname=place.hostname)
    return raw


def _request(
    raw: socket.socket, url: str, topic: str, token: str | None, last_id: str
) -> http.client.HTTPResponse | None:
    """Return the response; None if the connection broke or the server cannot answer now.

    Raises:
        AccessError: the server refuses the credential or the topic.
    """
    headers = {"Accept": "text/event-stream"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if last_id:
        headers["Last-Event-ID"] = last_id
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.sock = raw
    try:
        connection.request("GET", f"{urlsplit(url).path}?topic={quote(topic)}", headers=headers)
        response = connection.getresponse()
    except (OSError, http.client.HTTPException):
        return None
    if response.status in (401, 403, 404):
        raise AccessError(f"the server answered {response.status} {response.reason} ({topic})")
    raw.settimeout(SILENCE_SECONDS)
    return response if response.status == http.client.OK else None


def _read(response: http.client.HTTPResponse, put: Callable[[str | None], None]) -> None:
    # ValueError: the socket was closed, or a piece has no length.
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        for line in response:
            put(line.decode().rstrip("\r\n"))
    put(None)
