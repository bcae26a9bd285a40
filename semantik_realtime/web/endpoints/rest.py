"""Snapshot, history, health and metrics over HTTP."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from semantik_realtime.core.event import Event
from semantik_realtime.core.topic import job_topic
from semantik_realtime.errors import AccessError, BackendError, TopicError
from semantik_realtime.web.access import Identity, credentials_of
from semantik_realtime.web.hub.channel import states_of
from semantik_realtime.web.state import WebState

MAX_HISTORY = 1000

_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    """The answer to a request that is not served."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.response = JSONResponse({"code": code, "message": message}, status)
        if status == 401:
            self.response.headers["WWW-Authenticate"] = "Bearer"


async def get_job(request: Request, server: WebState, job_id: str) -> Response:
    """The state of a job now; ETag is the cursor."""
    topic = None
    try:
        topic = await _authorized(request, server, job_id)
        snapshot = await server.hub.look(topic, None, 0)
        if snapshot.cursor is None:
            recalled = None if snapshot.deleted else await server.hub.recall(topic)
            if recalled is None:
                raise Refused(404, "not_found", "no such job")
            return _json({"topic": topic, "cursor": None, "offset": 0, "states": _raw(recalled)})
    except Refused as refused:
        return refused.response
    except BackendError as error:
        return await _meanwhile(server, topic, error)
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


async def _meanwhile(server: WebState, topic: str | None, error: BackendError) -> Response:
    """The state of a job while the backend is away, for a user who is known to be allowed."""
    if topic is not None:
        with contextlib.suppress(BackendError):
            states = await server.hub.meanwhile.states(topic)
            if states is not None:
                return _json(
                    {
                        "topic": topic,
                        "cursor": None,
                        "offset": 0,
                        "states": _raw(states),
                        "provisional": True,
                    }
                )
    return Refused(503, error.code, str(error)).response


async def get_history(request: Request, server: WebState, job_id: str) -> Response:
    """The retained events after ``after``, oldest first, at most ``limit``."""
    try:
        after = integer(request, "after", 0, 2**53)
        limit = integer(request, "limit", 100, MAX_HISTORY)
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


async def get_health(server: WebState) -> Response:
    """Whether the process lives, is ready, and since when it is degraded. 503: not ready."""
    status = await server.hub.status()
    is_degraded = server.hub.degraded_since is not None
    body = {
        "live": True,
        "ready": not server.hub.draining and (not is_degraded or server.settings.degraded_is_ready),
        "degraded_since": server.hub.degraded_since,
        "spool": server.spool,
        "backend": {
            "name": server.settings.backend,
            "reachable": status.reachable,
            "server": status.server,
            "warnings": list(status.warnings),
        },
        "connections": len(server.hub.connections),
        "topics": server.hub.topics,
    }
    return JSONResponse(body, 200 if body["ready"] else 503)


async def get_metrics(request: Request, server: WebState) -> Response:
    """All counts, as Prometheus wants them, for whoever bears the token of the settings."""
    expected = server.settings.metrics_token
    try:
        if expected is None:
            if not server.settings.disable_auth:
                raise Refused(404, "metrics_off", "SEMANTIK_REALTIME_METRICS_TOKEN is not set")
        elif not _bears(request, expected.get_secret_value()):
            raise Refused(401, "unauthenticated", "not the token of the metrics")
        if server.metrics is None:
            raise Refused(501, "no_metrics", server.metrics_fault)
    except Refused as refused:
        return refused.response
    page, content_type = await server.metrics.page(request.headers.get("accept", ""))
    return Response(page, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def _bears(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return secrets.compare_digest(given.encode(), f"Bearer {token}".encode())


async def identify(request: Request, server: WebState) -> Identity:
    """Who asks.

    Raises:
        Refused: nobody we know.
        BackendUnavailable: nobody can tell now.
    """
    try:
        return await server.access.authenticate(credentials_of(request))
    except AccessError as error:
        raise Refused(401, error.reason, str(error)) from None


async def _authorized(request: Request, server: WebState, job_id: str) -> str:
    """The job's topic, if the user may watch it.

    A job of somebody else's and one that does not exist get the same answer.
    """
    identity = await identify(request, server)
    try:
        topic = job_topic(job_id)
    except TopicError:
        raise Refused(404, "not_found", "no such job") from None
    if not await server.may_watch(identity.user, topic):
        raise Refused(404, "not_found", "no such job")
    return topic


def integer(request: Request, name: str, default: int, most: int) -> int:
    """A parameter of the query, from 0 to ``most``.

    Raises:
        Refused: it is something else.
    """
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
