"""Server-sent events: the native wire's frames over plain HTTP, for clients that only read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.limits import MAX_HISTORY
from semantik_realtime.core.session import CloseCode
from semantik_realtime.core.topic import name_topic
from semantik_realtime.errors import BackendError, TopicError
from semantik_realtime.web.endpoints.answers import PIECE_BYTES, Refused
from semantik_realtime.web.endpoints.peer import Peer
from semantik_realtime.web.endpoints.rest import identify, integer
from semantik_realtime.web.endpoints.transport import CLOSE_SECONDS, run
from semantik_realtime.web.hub.connection import Connection
from semantik_realtime.web.hub.ended import Ended
from semantik_realtime.web.reads import Busy
from semantik_realtime.web.state import WebState
from semantik_realtime.web.tokens import CheckedIdentity
from semantik_realtime.web.wires.ends import StreamEnds, may_finish, statuses_of
from semantik_realtime.web.wires.native import NativeWire, reconnect_seconds
from semantik_realtime.web.wires.wire import Outgoing, Sync, states_of

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0
"""At most; what proxies and the HTML standard expect of an idle stream."""
HEADERS = {
    # What compresses a stream holds events back until a block is full. Proxies and the middleware
    # of Express obey `no-transform`; the GZipMiddleware of Starlette before 0.46 and others in
    # Python leave alone what names an encoding.
    "Cache-Control": "no-store, no-transform",
    "Content-Encoding": "identity",
    "X-Accel-Buffering": "no",
}
MEDIA_TYPE = "text/event-stream"
COMMENT = ""
"""A frame without content, for the heartbeat."""
LINGER_SECONDS = 5.0
"""From the end of every job in a stream to the end of the stream: a new attempt may begin."""
END = "end"
"""After the cursors in an id: the client has the ends of all jobs."""
_COUNTED_AS = {"not_found": "forbidden", "bad_input": "bad_frame", "bad_topic": "bad_frame"}


async def get_events(request: Request, web: WebState, job_id: str | None = None) -> Response:
    """Stream the events of a job, or of the topics of the query, until the client leaves.

    If all topics are of jobs, the stream ends some seconds after the last of
    them. To a browser that reconnects then, 204 says that it need not.

    A refusal is an HTTP error. While nobody can tell whether to refuse, the
    answer is a stream that ends: after an error a browser never reconnects.
    """
    stats = web.hub.stats
    try:
        if not web.access.allows_origin(request):
            raise Refused(403, "origin", web.explain_refusal(request))
        identity = await identify(request, web)
        asked = _asked(request, web, job_id)
        history = integer(request, "history", 0, MAX_HISTORY)
        if not await _may_begin(web, identity.user, asked):
            raise Refused(404, "not_found", "no such job" if job_id else "no such topic")
        ends = StreamEnds()
        if await _has_seen_the_end(request, web, identity.user, asked, ends):
            return Response(status_code=204, headers=HEADERS)
    except Refused as error:
        stats.count_refused(_COUNTED_AS.get(error.code, error.code))
        return error.response
    except BackendError as error:
        logger.warning("sse: not opened error=%s", error)
        stats.count_refused("server_error")
        return Response(_farewell(CloseCode.SERVER_ERROR), headers=HEADERS, media_type=MEDIA_TYPE)
    return EventStream(web, identity, asked, history, ends)


class Placed(str):
    """A frame, and the position of its topics after it; None: the topic has no position.

    The positions stay with the frame, because the id of an event may only
    contain positions that were sent before it or with it.
    """

    places: Mapping[str, Cursor | None]

    def __new__(cls, frame: str, places: Mapping[str, Cursor | None]) -> Placed:
        made = super().__new__(cls, frame)
        made.places = places
        return made


class SseWire(NativeWire):
    """The native wire, without answers to a client and without close frames."""

    name = "sse"

    def __init__(self, topics: Iterable[str], ends: StreamEnds) -> None:
        self.open = set(topics)
        """The topics that were neither denied nor deleted."""
        self.ends = ends
        """What the client knows of the ends of the jobs in its topics."""

    def sync(self, sync: Sync) -> list[str]:
        if sync.reason is None:
            self.ends.follow(sync.topic, sync.snapshot.events)
        else:
            self.ends.reset(sync.topic, sync.statuses)
        # Encoded once for all streams, as the frame is: it may have a megabyte.
        encoded = sync.encoded.get(self.name)
        if encoded is None:
            places = {sync.topic: sync.snapshot.cursor}
            encoded = [Placed(frame, places) for frame in super().sync(sync)]
            sync.encoded[self.name] = encoded
        return encoded

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        self.ends.has_news = True
        for topic, outgoing in waiting:
            self.ends.follow(topic, outgoing.events)
        places = {topic: outgoing.cursor for topic, outgoing in waiting}
        return [Placed(frame, places) for frame in super().events(waiting)]

    def denied(self, topic: str) -> list[str]:
        self.open.discard(topic)
        return [Placed(frame, {topic: None}) for frame in super().denied(topic)]

    def gone(self, topic: str) -> list[str]:
        self.open.discard(topic)
        return [Placed(frame, {topic: None}) for frame in super().gone(topic)]

    def heartbeat(self, places: Mapping[str, Cursor]) -> list[str]:
        return [COMMENT]

    def bye(self) -> list[str]:
        # The stream's last event says `bye`, for every reason.
        return []


class EventStream(Response):
    """The response that goes on; made once, for one request."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        web: WebState,
        identity: CheckedIdentity,
        asked: Mapping[str, Cursor | None],
        history: int,
        ends: StreamEnds,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._web = web
        self._identity = identity
        self._asked = asked
        self._history = history
        self._ends = ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = Peer(receive)
        peer.end_if_vanished()
        peer.send_at_once()
        web, wire, places = self._web, SseWire(self._asked, self._ends), dict(self._asked)
        has_begun = False
        # Ends the stream after `LINGER_SECONDS`; None while a job in it goes on.
        ending: asyncio.TimerHandle | None = None

        def end_if_finished() -> None:
            nonlocal ending
            if not wire.open:
                connection.end(CloseCode.FORBIDDEN, "no topic is left")
            elif not wire.ends.is_finished(wire.open):
                if ending is not None:
                    ending.cancel()
                ending = None
            elif ending is None:
                seconds = LINGER_SECONDS if wire.ends.has_news else 0
                ending = asyncio.get_running_loop().call_later(
                    seconds, connection.end, CloseCode.FINISHED, "every job has ended"
                )

        async def write(frame: str) -> None:
            nonlocal has_begun
            head = "data: " if frame else ":"
            if isinstance(frame, Placed):
                places.update(frame.places)
                head = f"{_id(places)}\n{head}"
            if not has_begun:
                has_begun = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                head = f"{_retry(reconnect_seconds())}\n{head}"
            for piece in _pieces(head, frame):
                connection.note_progress()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            end_if_finished()

        async def read(_: Connection) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            raise ClientDisconnect

        connection = Connection(
            wire,
            web.hub,
            web.outage,
            web.permissions,
            self._identity,
            write,
            heartbeat_seconds=min(HEARTBEAT_SECONDS, web.settings.heartbeat_seconds),
        )
        # So that the stream begins at once.
        connection.post(COMMENT)
        for topic, cursor in self._asked.items():
            connection.subscribe(topic, cursor, self._history)
        try:
            await run(web, connection, read, secrets.token_hex(8))
        except Ended as ended:
            if not has_begun:
                refused = Refused(429, "too_many_connections", ended.reason)
                await refused.response(scope, receive, send)
                return
            text = _farewell(ended.code)
            if ended.code is CloseCode.FINISHED:
                # A browser reconnects with this id, and gets the answer 204, after which it stops.
                text = f"{_id(places)},{END}\n{text}"
            last = {"type": "http.response.body", "body": text.encode()}
            with contextlib.suppress(OSError):
                try:
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await send(last)
                except TimeoutError:
                    # Nothing drains: the server would keep the socket as long as the kernel does.
                    peer.abort()
        finally:
            if ending is not None:
                ending.cancel()


async def _may_begin(web: WebState, user: str, topics: Iterable[str]) -> bool:
    """Return True once the user may watch one of ``topics``, or if nobody can tell now."""
    waits = [asyncio.ensure_future(web.permissions.wait(user, topic)) for topic in topics]
    try:
        for permission in asyncio.as_completed(waits):
            if (await permission).is_allowed:
                return True
    except BackendError:
        return True
    finally:
        await stop_tasks(waits)
    return False


async def _has_seen_the_end(
    request: Request,
    web: WebState,
    user: str,
    asked: Mapping[str, Cursor | None],
    ends: StreamEnds,
) -> bool:
    """Return True if a client that resumes has all that will ever be sent, without new attempts.

    If not, ``ends`` knows the present states, because a replay does not have them.
    """
    last = _last_id(request)
    if not last or not may_finish(asked):
        return False
    has_end = last.split(",")[len(asked) :] == [END]
    has_all = True
    with contextlib.suppress(BackendError, Busy):
        for topic, place in asked.items():
            if (await web.permissions.ask(user, topic)).is_allowed:
                async with web.hub.reads.request_turn(user):
                    snapshot = await web.hub.read(topic)
                is_finished = ends.seed(topic, statuses_of(states_of(topic, snapshot)))
                if snapshot.cursor is None:
                    # The end is in the host's record alone, which the client was sent.
                    is_finished = has_end and not snapshot.deleted
                has_all = has_all and is_finished and snapshot.cursor == place
        # With `?cursor=` a page begins: it must get an answer.
        return has_all and "last-event-id" in request.headers
    return False


def _asked(request: Request, web: WebState, job_id: str | None) -> dict[str, Cursor | None]:
    """Return the topics of the request, in their order, with their cursors."""
    names = request.query_params.getlist("topic") if job_id is None else [f"job:{job_id}"]
    try:
        # A topic has several names: one of a plain id, and its own.
        topics = list(dict.fromkeys(map(name_topic, names)))
    except TopicError as error:
        if job_id is None:
            raise Refused(422, error.code, str(error)) from None
        raise Refused(404, "not_found", "no such job") from None
    limit = web.settings.max_topics
    if not 1 <= len(topics) <= limit:
        raise Refused(422, "bad_input", f"give 1 to {limit} topics")
    cursors = [Cursor.parse(text) if text else None for text in _last_id(request).split(",")]
    return dict(zip(topics, cursors + [None] * len(topics), strict=False))


def _last_id(request: Request) -> str:
    # A browser reconnects to the same URL, so its Last-Event-ID is newer than the query.
    return request.headers.get("last-event-id") or request.query_params.get("cursor", "")


def _id(places: Mapping[str, Cursor | None]) -> str:
    return "id: " + ",".join("" if place is None else str(place) for place in places.values())


def _pieces(head: str, frame: str) -> Iterator[bytes]:
    """Yield an event of the stream, in pieces of at most `PIECE_BYTES` characters of its frame.

    The server waits for the client between two pieces, so it never buffers more than a few.
    """
    for start in range(0, len(frame) or 1, PIECE_BYTES):
        # An application may have encoded JSON with line ends; there they are white space.
        part = frame[start : start + PIECE_BYTES].replace("\n", " ").replace("\r", " ")
        end = "\n\n" if start + PIECE_BYTES >= len(frame) else ""
        yield f"{head}{part}{end}".encode()
        head = ""


def _retry(seconds: float) -> str:
    return f"retry: {round(seconds * 1000)}"


def _farewell(code: CloseCode) -> str:
    seconds = reconnect_seconds()
    when = {} if code is CloseCode.FINISHED else {"reconnect_seconds": seconds}
    bye = frames.encode({"op": "bye", **when, "code": code})
    return f"{_retry(seconds)}\ndata: {bye}\n\n"
