"""Requests that change a job: cancel it, start it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from semantik_realtime.core.topic import job_topic
from semantik_realtime.errors import BackendError
from semantik_realtime.web.control import ControlError
from semantik_realtime.web.endpoints.answers import Refused, refuse_busy
from semantik_realtime.web.endpoints.rest import authorized, unavailable
from semantik_realtime.web.hub.permission import Permission
from semantik_realtime.web.reads import Busy
from semantik_realtime.web.state import WebState

Command = Callable[[str, str, Permission], Awaitable[Any]]


async def cancel_job(request: Request, web: WebState, job_id: str) -> Response:
    """Cancel a job: 200 if it has ended by that, 202 if its task still runs."""

    async def cancel(user: str, topic: str, permission: Permission) -> Response:
        status = await web.control.cancel(user, topic, permission)
        code = 202 if status == "cancelling" else 200
        return _answer(code, {"topic": topic, "status": status})

    return await _respond(request, web, job_id, cancel)


async def retry_job(request: Request, web: WebState, job_id: str) -> Response:
    """Start a job that has ended again: 202, with the job to watch."""

    async def retry(user: str, topic: str, permission: Permission) -> Response:
        watched = await web.control.retry(user, topic, permission)
        return _answer(202, {"job": watched, "topic": job_topic(watched)})

    return await _respond(request, web, job_id, retry)


async def _respond(request: Request, web: WebState, job_id: str, command: Command) -> Response:
    try:
        # A browser sends its cookies with a POST of any page, too.
        if not web.access.allows_command(request):
            raise Refused(403, "origin", web.explain_refusal(request))
        topic, user, permission = await authorized(request, web, job_id)
        response: Response = await command(user, topic, permission)
        return response
    except Refused as refused:
        return refused.response
    except ControlError as error:
        return Refused(error.status, error.code, str(error)).response
    except Busy as busy:
        return refuse_busy(web, busy)
    except BackendError as error:
        return unavailable(error)


def _answer(status: int, body: dict[str, str]) -> Response:
    return JSONResponse(body, status, headers={"Cache-Control": "no-store"})
