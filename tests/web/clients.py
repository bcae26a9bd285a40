"""Clients of the wires over real sockets: native, server-sent events and compatibility."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from configuration import token
from publisher import Publisher
from waiting import until
from web_servers import WebServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from semantik_realtime.core.fold import View

SUBPROTOCOL = "semantik.realtime.v1"


class NativeClient:
    """A client that follows the rules of docs/protocol.md, and keeps what it receives.

    Args:
        web_server: the server to connect to; may be replaced before `open`.
        topics: followed from the ``welcome`` on.
        user: the user of the token.
        history: how many events to ask for with a snapshot.
        options: ``query`` replaces the query with the token; the others go to `connect`.
    """

    def __init__(
        self, web_server: WebServer, *topics: str, user: str = "7", history: int = 0, **options: Any
    ):
        self.web_server = web_server
        self.user = user
        self.topics = dict.fromkeys(topics, history)
        """The topics to follow, each with its ``history``."""
        self.views = {topic: View(topic) for topic in topics}
        self.applied: dict[str, list[dict[str, Any]]] = {topic: [] for topic in topics}
        """Live and replayed events that were applied, by topic, in order of arrival."""
        self.history: dict[str, list[dict[str, Any]]] = {topic: [] for topic in topics}
        """Events that came with a snapshot, by topic."""
        self.syncs: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []
        """Every frame, in order of arrival."""
        self.conflated = 0
        """How many events the server left out of its batches, as it may for a slow client."""
        self.bad_batches: list[object] = []
        """Batches with a gap, a repetition or a wrong order."""
        self.resubscribed = 0
        """How often the client subscribed a topic again because of a gap."""
        self.connections = 0
        """How often the client has connected."""
        self.closed: int | None = None
        """The close code; None while the connection is open. 1006: without a close frame."""
        self.socket: ClientConnection | None = None
        self._options = options
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> NativeClient:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect, and follow every topic from its last cursor."""
        query = self._options.get("query", f"?token={token(self.user)}")
        rest = {name: value for name, value in self._options.items() if name != "query"}
        self.socket = await connect(
            self.web_server.native_url + query, subprotocols=[SUBPROTOCOL], max_size=None, **rest
        )
        self.connections += 1
        self.closed = None
        self._reading = asyncio.create_task(self._read(self.socket))

    async def close(self) -> None:
        """Close the connection with a handshake."""
        if self.socket is not None:
            await self.socket.close()
        await self._wait_for_reader()

    async def abort(self) -> None:
        """End the connection without a handshake, as a lost network does."""
        assert self.socket is not None
        self.socket.transport.abort()
        await self._wait_for_reader()

    async def _wait_for_reader(self) -> None:
        if self._reading is not None:
            await self._reading
            self._reading = None

    async def send(self, frame: object) -> None:
        assert self.socket is not None
        await self.socket.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def subscribe(self, *topics: str) -> None:
        for topic in topics or self.topics:
            self._add_topic(topic)
            frame = {
                "op": "subscribe",
                "topics": {topic: self.views[topic].cursor},
                "history": self.topics.setdefault(topic, 0),
            }
            await self.send(frame)

    def _add_topic(self, topic: str) -> None:
        self.views.setdefault(topic, View(topic))
        self.applied.setdefault(topic, [])
        self.history.setdefault(topic, [])

    def ops(self, op: str) -> list[dict[str, Any]]:
        """Return the frames of one kind that have arrived."""
        return [frame for frame in self.frames if frame["op"] == op]

    async def wait_for(self, op: str, count: int = 1, seconds: float = 10.0) -> dict[str, Any]:
        """Wait for the ``count``-th frame of one kind, and return it."""
        await until(lambda: len(self.ops(op)) >= count, seconds, lambda: (op, self))
        return self.ops(op)[count - 1]

    async def wait_synced(self, *topics: str) -> None:
        """Wait until every topic, or each of ``topics``, has its ``sync``."""
        wanted = topics or tuple(self.topics)
        await until(lambda: all(self.views[topic].synced for topic in wanted), 10, lambda: self)

    async def wait_for_offset(self, topic: str, offset: int, seconds: float = 15.0) -> None:
        """Wait until the client has the state at ``offset``."""
        await until(lambda: self.views[topic].offset >= offset, seconds, lambda: self)

    def numbers(self, topic: str) -> list[int]:
        """Return ``data.i`` of the applied events."""
        return [event["data"]["i"] for event in self.applied[topic]]

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                await self._receive(json.loads(text))
        except ConnectionClosed:
            pass
        self.closed = socket.close_code
        for view in self.views.values():
            view.interrupt()

    async def _receive(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        gaps: list[str] = []
        match frame["op"]:
            case "welcome":
                await self.subscribe()
            case "sync":
                topic = frame["topic"]
                self.syncs.append(frame)
                self._add_topic(topic)
                if frame["mode"] == "replay":
                    self._apply(topic, frame, gaps)
                else:
                    self.history[topic] += self.views[topic].sync(frame) or []
            case "events":
                for topic, batch in frame["topics"].items():
                    self._apply(topic, batch, gaps)
            case "provisional":
                if frame["topic"] in self.views:
                    self.views[frame["topic"]].provisional(frame["states"])
            case "restored":
                for view in self.views.values():
                    view.restored()
            case "tops":
                for topic, top in frame["topics"].items():
                    if topic in self.views and self.views[topic].behind(top):
                        gaps.append(topic)
        for topic in gaps:
            self.resubscribed += 1
            await self.subscribe(topic)

    def _apply(self, topic: str, batch: dict[str, Any], gaps: list[str]) -> None:
        view = self.views[topic]
        before = view.offset
        events = view.sync(batch) if "mode" in batch else view.batch(batch)
        if events is None:
            gaps.append(topic)
            return
        offsets = [event["offset"] for event in events]
        missing = view.offset - before - len(offsets)
        # The client's rule ignores a repetition, but the server has no reason for one.
        repeated = [event for event in batch["events"] if event["offset"] <= batch["prev"]]
        if repeated or missing > batch.get("conflated", 0) or offsets != sorted(set(offsets)):
            self.bad_batches.append((topic, before, batch))
        self.conflated += missing
        self.applied[topic] += events

    def __repr__(self) -> str:
        places = {topic: (view.offset, view.synced) for topic, view in self.views.items()}
        ops = Counter(frame["op"] for frame in self.frames)
        return f"NativeClient({places}, {dict(ops)}, closed={self.closed}, last={self.frames[-2:]})"


class SseClient(NativeClient):
    """The same over server-sent events, read as a browser's EventSource does.

    ``headers`` and ``query`` are added to its request; with ``headers`` given
    there is no token in the query.
    """

    def __init__(
        self, web_server: WebServer, *topics: str, path: str | None = None, **options: Any
    ):
        super().__init__(web_server, *topics, **options)
        self.path = path
        self.status = 0
        self.answer: httpx.Response | None = None
        self.comments = 0
        self.retries: list[int] = []
        self.last_id = ""
        self.is_complete = False
        """Whether the server has ended the response in order."""
        self.may_read = asyncio.Event()
        """Cleared: the client stops reading."""
        self.may_read.set()

    async def open(self) -> None:
        """Request the stream after the last id; ``status`` is the status of the response."""
        self._http = httpx.AsyncClient(timeout=30)
        path, query = self.path, dict(self._options.get("query", {}))
        if path is None:
            path, query["topic"] = "/realtime/events", list(self.topics)
        headers = self._options.get("headers")
        if headers is None:
            query["token"] = token(self.user)
        if history := max(self.topics.values(), default=0):
            query["history"] = history
        resume = {"Last-Event-ID": self.last_id} if self.last_id else {}
        url = httpx.URL(self.web_server.http_url + path).copy_merge_params(query)
        request = self._http.build_request("GET", url, headers={**(headers or {}), **resume})
        self.answer = await self._http.send(request, stream=True)
        self.status = self.answer.status_code
        self.connections += 1
        self.is_complete = False
        self._reading = asyncio.create_task(self._read_blocks(self.answer))

    async def abort(self) -> None:
        """End the connection at once."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None
        await self._http.aclose()
        for view in self.views.values():
            view.interrupt()

    close = abort

    async def wait_ended(self, seconds: float = 10.0) -> dict[str, Any]:
        """Wait until the server has ended the stream; return the last frame."""
        assert self._reading is not None
        await until(self._reading.done, seconds, lambda: self)
        return self.frames[-1]

    async def subscribe(self, *topics: str) -> None:
        # A stream has no way to subscribe again, so a gap is a fault.
        self.bad_batches.append(("gap", topics))

    async def _read_blocks(self, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            await answer.aread()
            return
        data, id, rest = "", self.last_id, b""
        try:
            async for chunk in answer.aiter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    name, _, value = line.decode().partition(": ")
                    match name:
                        case "":
                            if data:
                                self.last_id = id
                                await self._receive(json.loads(data))
                            data = ""
                        case "data":
                            data += value
                        case "id":
                            id = value
                        case "retry":
                            self.retries.append(int(value))
                        case ":":
                            self.comments += 1
                        case _:
                            raise AssertionError(f"not a field: {line!r}")
                await self.may_read.wait()
            self.is_complete = True
        except httpx.TransportError:
            pass


class CompatClient:
    """A browser of the compatibility wire; it keeps every message."""

    def __init__(
        self, url: str, *, user: str | None = "7", query: Mapping[str, str] = {}, **options: Any
    ):
        credential = {"token": token(user)} if user is not None else {}
        self._url = httpx.URL(url, params={**credential, **query})
        self._options = options
        self.messages: list[dict[str, Any]] = []
        self.closed: int | None = None
        self.reason = ""
        self.socket: ClientConnection | None = None

    async def __aenter__(self) -> CompatClient:
        self.socket = await connect(str(self._url), max_size=None, **self._options)
        self._reading = asyncio.create_task(self._read(self.socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.socket is not None
        await self.socket.close()
        await self._reading

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                self.messages.append(json.loads(text))
        except ConnectionClosed:
            pass
        self.closed, self.reason = socket.close_code, socket.close_reason or ""

    async def send(self, text: str | bytes) -> None:
        assert self.socket is not None
        await self.socket.send(text)

    def of_type(self, type: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == type]

    async def wait_for(self, type: str, count: int = 1, seconds: float = 10.0) -> dict[str, Any]:
        await until(
            lambda: len(self.of_type(type)) >= count,
            seconds,
            lambda: (type, self.messages[-3:], self.closed),
        )
        return self.of_type(type)[count - 1]

    async def wait_closed(self, seconds: float = 10.0) -> int:
        """Wait for the end of the connection; return its close code (1006: no close frame)."""
        await until(lambda: self.closed is not None, seconds, lambda: self.messages[-3:])
        assert self.closed is not None
        return self.closed


async def refusal(url: str, **options: Any) -> tuple[int, str]:
    """Connect, and return how the server refuses it: HTTP status, or close code and reason."""
    try:
        async with connect(url, **options) as socket:
            with contextlib.suppress(ConnectionClosed):
                async with asyncio.timeout(15):
                    while True:
                        await socket.recv()
            return socket.close_code or 0, socket.close_reason or ""
    except InvalidHandshake as error:
        response = getattr(error, "response", None)
        return (response.status_code if response else 0), "handshake"


@contextlib.asynccontextmanager
async def bystander(web_server: WebServer, publisher: Publisher) -> AsyncIterator[NativeClient]:
    """Follow a job of another user on the same server, whom the block must not affect."""
    topic = f"job:bystander-{secrets.token_hex(3)}"
    await publisher.publish(topic, 1, owner="by")
    async with NativeClient(web_server, topic, user="by") as client:
        await client.wait_synced()
        await publisher.publish(topic, 5, owner="by")
        yield client
        await publisher.publish(topic, 5, owner="by")
        await client.wait_for_offset(topic, 11)
        assert client.numbers(topic) == list(range(1, 11))
        assert client.connections == 1
        assert not client.bad_batches
        assert client.closed is None
        assert not client.ops("error")
