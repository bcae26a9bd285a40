"""Snapshot, history and health over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from semantik_realtime.core.event import Event
from semantik_realtime.core.topic import job_topic
from semantik_realtime.errors import AccessError, BackendError, TopicError
from semantik_realtime.hookspecs import Status
from semantik_realtime.web.access import credentials_of
from semantik_realtime.web.channel import states_of
from semantik_realtime.web.connection import recall_states
from semantik_realtime.web.server import Server

MAX_HISTORY = 1000

_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    """The answer to a request that is not served."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.response = JSONResponse({"code": code, "message": message}, status)
        if status == 401:
            self.response.headers["WWW-Authenticate"] = "Bearer"


async def get_job(request: Request, server: Server, job_id: str) -> Response:
    """The state of a job now; ETag is the cursor."""
    try:
        topic = await _authorized(request, server, job_id)
        snapshot = await server.hub.look(topic, None, 0)
        if snapshot.cursor is None:
            recalled = await recall_states(server.plugins, topic)
            if recalled is None:
                raise Refused(404, "not_found", "no such job")
            return _json({"topic": topic, "cursor": None, "offset": 0, "states": _raw(recalled)})
    except Refused as refused:
        return refused.response
    except BackendError as error:
        return Refused(503, error.code, str(error)).response
    etag = f'"{snapshot.cursor}"'
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers={"ETag": etag})
    body = {
        "topic": topic,
        "cursor": str(snapshot.cursor),
        "offset": snapshot.cursor.offset,
        "states": _raw(states_of(snapshot)),
    }
    return _json(body, ETag=etag)


async def get_history(request: Request, server: Server, job_id: str) -> Response:
    """The retained events after ``after``, oldest first, at most ``limit``."""
    try:
        after = _integer(request, "after", 0, 2**53)
        limit = _integer(request, "limit", 100, MAX_HISTORY)
        topic = await _authorized(request, server, job_id)
        # The newest 1000 are all that is kept by default; more are not read at once.
        snapshot = await server.hub.look(topic, None, MAX_HISTORY)
    except Refused as refused:
        return refused.response
    except BackendError as error:
        return Refused(503, error.code, str(error)).response
    events: list[Event] = [event for event in snapshot.events if event.offset > after]
    return _json(
        {
            "topic": topic,
            "epoch": snapshot.cursor.epoch if snapshot.cursor else None,
            "events": [msgspec.Raw(event.json) for event in events[:limit]],
            "more": len(events) > limit,
        }
    )


async def get_health(server: Server) -> Response:
    """Whether the process lives and the backend answers. 503: not ready."""
    try:
        # A probe wants an answer; the backend may need several deadlines to give up.
        async with asyncio.timeout(server.settings.timeout_seconds):
            await server.hub.open()
            status = await server.hub.status()
    except (BackendError, TimeoutError) as error:
        server.hub.degrade()
        status = Status(server.settings.backend, False, str(error))
    body = {
        "live": True,
        "ready": status.reachable and not server.hub.draining,
        "degraded_since": server.hub.degraded_since,
        "backend": {
            "name": status.backend,
            "reachable": status.reachable,
            "server": status.server,
            "warnings": list(status.warnings),
        },
        "connections": len(server.hub.connections),
        "topics": server.hub.topics,
    }
    return JSONResponse(body, 200 if body["ready"] else 503)


async def _authorized(request: Request, server: Server, job_id: str) -> str:
    """The job's topic, if the user may watch it.

    A job of somebody else's and one that does not exist get the same answer.
    """
    try:
        identity = await server.access.authenticate(credentials_of(request))
    except AccessError as error:
        raise Refused(401, error.reason, str(error)) from None
    try:
        topic = job_topic(job_id)
    except TopicError:
        raise Refused(404, "not_found", "no such job") from None
    if not await server.may_watch(identity.user, topic):
        raise Refused(404, "not_found", "no such job")
    return topic


def _integer(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > most:
        raise Refused(422, "bad_input", f"{name} is an integer from 0 to {most}")
    return int(text)


def _matches(condition: str, etag: str) -> bool:
    """RFC 9110, section 13.1.2: a list of tags, weak ones too, or a star."""
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return etag in tags or "*" in tags


def _raw(states: Any) -> dict[str, msgspec.Raw]:
    return {key: msgspec.Raw(state) for key, state in states.items()}


def _json(body: Any, **headers: str) -> Response:
    return Response(
        _encode(body),
        media_type="application/json",
        headers={"Cache-Control": "no-store", **headers},
    )
