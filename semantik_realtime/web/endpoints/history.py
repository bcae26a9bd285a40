"""Pages of a job's history over HTTP, which continue the history that the client knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.limits import MAX_HISTORY
from semantik_realtime.core.resume import Reason, plan_page
from semantik_realtime.errors import BackendError
from semantik_realtime.web.endpoints.answers import JsonAnswer, Refused, refuse_busy
from semantik_realtime.web.endpoints.rest import authorized, check_epoch, integer, unavailable
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.reads import Busy
from semantik_realtime.web.state import WebState


class Part(NamedTuple):
    """What was read of a log."""

    end: Cursor | None
    """Of the log; None: the backend does not know the topic."""
    events: Sequence[Event]
    more: bool
    reason: Reason | None
    """Why the events do not continue after the asked position; None: they do."""


async def get_history(request: Request, web: WebState, job_id: str) -> Response:
    """Return the retained events after ``after``, oldest first, at most ``limit``.

    Fewer if they would have too many bytes; ``cursor`` continues after them. If
    the log no longer continues after ``after``, ``reason`` says why, and the
    events are those that it has now.
    """
    try:
        after = _position(request)
        limit = integer(request, "limit", 100, MAX_HISTORY)
        topic, user, permission = await authorized(request, web, job_id)
        async with web.hub.reads.request_turn(user):
            part = await _read(web.hub, topic, after, max(1, limit))
        await check_epoch(web, user, topic, permission.epoch, part.end)
    except Refused as refused:
        return refused.response
    except Busy as busy:
        return refuse_busy(web, busy)
    except BackendError as error:
        return unavailable(error)
    # A page has one event at least, but the request may ask for none.
    events = part.events[:limit]
    place = _place_after(part, events, after)
    body = {
        "topic": topic,
        "epoch": part.end.epoch if part.end else None,
        "reason": part.reason,
        "events": [msgspec.Raw(event.json) for event in events],
        "more": part.more or len(events) < len(part.events),
        "next": place.offset,
        "cursor": str(place) if place.epoch else None,
    }
    return JsonAnswer(body, user, web)


def _position(request: Request) -> Cursor:
    """Return ``after`` of the query. That of an offset alone has no epoch.

    Raises:
        Refused: it is neither an offset nor a cursor.
    """
    text = request.query_params.get("after", "0")
    cursor = Cursor.parse(text)
    return cursor if cursor.epoch else Cursor("", integer(request, "after", 0, 2**53), 0)


async def _read(hub: Hub, topic: str, after: Cursor, limit: int) -> Part:
    """Read a page after a position, or from the beginning of a log that does not continue it."""
    # With the event at the position, whose chain shows whether it is one of this log.
    before = after.offset - 1 if after.epoch and after.offset else after.offset
    page = await hub.page(topic, before, min(limit + after.offset - before, MAX_HISTORY))
    events = page.events
    there = None
    if before < after.offset and events and events[0].offset == after.offset:
        there, events = events[0], events[1:]
    reason = plan_page(after, page.cursor, there)
    if reason in (Reason.EPOCH, Reason.AHEAD, Reason.DIVERGED):
        page = await hub.page(topic, 0, limit)
        return Part(page.cursor, page.events, page.more, reason)
    if there is not None and not events and page.more:
        # That event alone had as many bytes as an answer may have.
        page = await hub.page(topic, after.offset, limit)
        events = page.events
    return Part(page.cursor, events[:limit], page.more or len(events) > limit, reason)


def _place_after(part: Part, events: Sequence[Event], after: Cursor) -> Cursor:
    """Return the position after ``events``, of which the epoch is empty if it is not known."""
    if part.end is None:
        return Cursor("", 0, 0)
    if events:
        return Cursor(part.end.epoch, events[-1].offset, events[-1].chain)
    if part.reason is not None:
        return Cursor(part.end.epoch, 0, 0)
    # An offset alone may be that of the end of the log, or of its beginning.
    if not after.epoch and after.offset in (0, part.end.offset):
        return part.end if after.offset else Cursor(part.end.epoch, 0, 0)
    return after
