"""Answers to HTTP requests: small ones at once, big ones in pieces, in a place of the user's."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from semantik_realtime.web.endpoints.peer import Peer
from semantik_realtime.web.reads import Busy
from semantik_realtime.web.state import WebState

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 * 1024
"""A server buffers about this much before it waits for the client, and one piece more."""
SEND_SECONDS = 30.0
"""How long a client may take to read a small answer; then the connection is closed."""
SEND_BYTES_PER_SECOND = 16 * 1024
"""How fast it must read the rest of a big one."""
RETRY_SECONDS = 1
"""When a client that was refused may ask again."""
WARN_SECONDS = 60.0
"""Between two log lines about refused requests."""

_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    """A request that is refused, with its response."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.response = JSONResponse({"code": code, "message": message}, status)
        if status == 401:
            self.response.headers["WWW-Authenticate"] = "Bearer"
        if status in (429, 503):
            self.response.headers["Retry-After"] = str(RETRY_SECONDS)


_warn_at = {"user": 0.0, "server": 0.0}
"""When `refuse_busy` may log again, on the monotonic clock."""


def refuse_busy(web: WebState, busy: Busy) -> Response:
    """Return the response to a request that finds too many others: 429 if they are the user's."""
    web.hub.stats.count_busy(busy.by)
    now = time.monotonic()
    if now >= _warn_at[busy.by]:
        _warn_at[busy.by] = now + WARN_SECONDS
        logger.warning("rest: too busy, requests are refused by=%s", busy.by)
    return Refused(429 if busy.by == "user" else 503, busy.code, str(busy)).response


class JsonAnswer(Response):
    """A JSON body, which a client that does not read keeps in memory for a limited time only.

    Args:
        body: encoded with msgspec.
        user: whose answer it is.
        web: has the places of big answers.
        headers: of the response.
    """

    media_type = "application/json"

    def __init__(self, body: Any, user: str, web: WebState, **headers: str) -> None:
        super().__init__(_encode(body), headers={"Cache-Control": "no-store", **headers})
        self._user = user
        self._web = web

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.body) <= PIECE_BYTES:
            await super().__call__(scope, receive, send)
            return
        peer = Peer(receive)
        peer.end_if_vanished()
        try:
            with self._web.answers.place(self._user, len(self.body)):
                await self._send(send)
        except Busy as busy:
            await refuse_busy(self._web, busy)(scope, receive, send)
        except TimeoutError:
            logger.info("rest: answer not read bytes=%d", len(self.body))
            # Where that has no effect, the server closes a connection whose answer is incomplete.
            peer.abort()

    async def _send(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        async with asyncio.timeout(SEND_SECONDS + len(self.body) / SEND_BYTES_PER_SECOND):
            await send({"type": "http.response.start", **start})
            for piece in self._pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _pieces(self) -> Iterator[bytes]:
        for start in range(0, len(self.body), PIECE_BYTES):
            yield bytes(self.body[start : start + PIECE_BYTES])
