"""Snapshot, health and metrics over HTTP."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.topic import name_topic
from semantik_realtime.errors import AccessError, BackendError, TopicError
from semantik_realtime.web.credentials import credentials_of
from semantik_realtime.web.endpoints.answers import JsonAnswer, Refused, refuse_busy
from semantik_realtime.web.hub.permission import Permission
from semantik_realtime.web.reads import Busy
from semantik_realtime.web.state import WebState
from semantik_realtime.web.tokens import CheckedIdentity
from semantik_realtime.web.wires.wire import states_of

logger = logging.getLogger(__name__)


async def get_job(request: Request, web: WebState, job_id: str) -> Response:
    """Return the state of a job now; ETag is the cursor."""
    topic, user, permission = None, "", Permission(False)
    try:
        topic, user, permission = await authorized(request, web, job_id)
        known = request.headers.get("if-none-match", "")
        if known and (top := await web.hub.top(topic)) and top.cursor.epoch == permission.epoch:
            if _matches(known, _etag(top.cursor)):
                # Without the states, for a page that asks again and again.
                return Response(status_code=304, headers={"ETag": _etag(top.cursor)})
        async with web.hub.reads.request_turn(user):
            snapshot = await web.hub.read(topic)
        await check_epoch(web, user, topic, permission.epoch, snapshot.cursor)
        if snapshot.cursor is None:
            recalled = None if snapshot.deleted else await web.outage.recall(topic)
            if recalled is None:
                raise Refused(404, "not_found", "no such job")
            return JsonAnswer(_states(topic, None, recalled), user, web)
    except Refused as refused:
        return refused.response
    except Busy as busy:
        return refuse_busy(web, busy)
    except BackendError as error:
        return await _provisional(web, topic, user, permission.owner, error)
    if _matches(known, _etag(snapshot.cursor)):
        return Response(status_code=304, headers={"ETag": _etag(snapshot.cursor)})
    return JsonAnswer(
        _states(topic, snapshot.cursor, states_of(topic, snapshot)),
        user,
        web,
        ETag=_etag(snapshot.cursor),
    )


async def _provisional(
    web: WebState, topic: str | None, user: str, owner: str | None, error: BackendError
) -> Response:
    """Return what is known of a job without the backend, for a user who may watch it."""
    if topic is not None:
        with contextlib.suppress(BackendError):
            states = await web.outage.states(topic, owner)
            if states is not None:
                body = {**_states(topic, None, states), "provisional": True}
                return JsonAnswer(body, user, web)
    return unavailable(error)


def unavailable(error: BackendError) -> Response:
    """Answer 503, and log the reason, which may have addresses and names of the operator's."""
    logger.warning("http: not answered error=%s", error)
    return Refused(503, error.code, "not available now, try again later").response


async def get_health(web: WebState) -> Response:
    """Return whether the process is ready, and since when it is degraded. 503: not ready."""
    status = await web.hub.status()
    is_degraded = web.outage.since is not None
    body = {
        "live": True,
        "ready": not web.hub.draining and (not is_degraded or web.settings.degraded_is_ready),
        "degraded_since": web.outage.since,
        "spool": web.spool,
        "backend": {
            "name": web.settings.backend,
            "reachable": status.reachable,
            "server": status.server,
            "warnings": list(status.warnings),
        },
        "connections": len(web.hub.connections),
        "unauthenticated": web.unauthenticated.count,
        "topics": web.hub.topics,
    }
    return JSONResponse(body, 200 if body["ready"] else 503)


async def get_metrics(request: Request, web: WebState) -> Response:
    """Return all metrics for Prometheus, to clients with the token of the settings."""
    # Without a lifespan nothing has checked whether authentication may be off.
    web.access.check()
    expected = web.settings.metrics_token
    try:
        if expected is None:
            if not web.settings.disable_auth:
                raise Refused(404, "metrics_off", "SEMANTIK_REALTIME_METRICS_TOKEN is not set")
        elif not _bears(request, expected.get_secret_value()):
            raise Refused(401, "unauthenticated", "not the token of the metrics")
        if web.metrics is None:
            raise Refused(501, "no_metrics", web.metrics_error)
    except Refused as refused:
        return refused.response
    page, content_type = await web.metrics.page(request.headers.get("accept", ""))
    return Response(page, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def _bears(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return secrets.compare_digest(given.encode(), f"Bearer {token}".encode())


async def identify(request: Request, web: WebState) -> CheckedIdentity:
    """Authenticate a request.

    Raises:
        Refused: the credential is missing or was refused: 401, or 403 if another would not help.
        BackendUnavailable: nobody can tell now.
    """
    try:
        return await web.access.authenticate(credentials_of(request, web.settings.token_cookie))
    except AccessError as error:
        web.refusals.note_credential(str(error), error)
        raise Refused(403 if error.code == "forbidden" else 401, error.code, str(error)) from None


async def authorized(request: Request, web: WebState, job_id: str) -> tuple[str, str, Permission]:
    """Return the job's topic and the user, if the user may watch it, and in which epoch of whom.

    Another user's job and a job that does not exist get the same answer.
    """
    identity = await identify(request, web)
    try:
        topic = name_topic(f"job:{job_id}")
    except TopicError:
        raise Refused(404, "not_found", "no such job") from None
    permission = await web.permissions.ask(identity.user, topic)
    if not permission.is_allowed:
        web.permissions.note_denied(identity.user, topic, permission)
        raise Refused(404, "not_found", "no such job")
    return topic, identity.user, permission


async def check_epoch(
    web: WebState, user: str, topic: str, epoch: str, cursor: Cursor | None
) -> None:
    """Authorize again if the log has begun again before it was read: its owner may be another.

    Raises:
        Refused: the user may not watch what was read.
    """
    if cursor is None or cursor.epoch == epoch:
        return
    permission = await web.permissions.ask(user, topic)
    if not permission.is_allowed or permission.epoch != cursor.epoch:
        raise Refused(404, "not_found", "no such job")


def integer(request: Request, name: str, default: int, most: int) -> int:
    """Return an integer of the query, from 0 to ``most``.

    Raises:
        Refused: it is anything else.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > most:
        raise Refused(422, "bad_input", f"{name} is an integer from 0 to {most}")
    return int(text)


def _etag(cursor: Cursor) -> str:
    return f'"{cursor}"'


def _matches(condition: str, etag: str) -> bool:
    """Compare as in RFC 9110, section 13.1.2: a list of tags, weak ones too, or a star."""
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return etag in tags or "*" in tags


def _states(topic: str, cursor: Cursor | None, states: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "topic": topic,
        "cursor": str(cursor) if cursor else None,
        "offset": cursor.offset if cursor else 0,
        "states": {key: msgspec.Raw(state) for key, state in states.items()},
    }
