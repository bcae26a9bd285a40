"""Web servers, clients and a publisher: real processes, sockets and logs for the tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from semantik_realtime import Realtime
from semantik_realtime.clock import now_text
from semantik_realtime.config import Settings
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Draft
from semantik_realtime.core.fold import View
from semantik_realtime.runtime import Runtime

SECRET = "a secret of at least thirty-two bytes"
SUBPROTOCOL = "semantik.realtime.v1"
HERE = Path(__file__).parent


def token(user: object = "7", *, seconds: float = 600, **claims: Any) -> str:
    """A credential that `settings` accepts."""
    return jwt.encode({"sub": user, "exp": time.time() + seconds, **claims}, SECRET, "HS256")


def make_settings(url: str, **given: Any) -> Settings:
    """Settings of a test: keys of its own, everything else as it comes unless ``given``."""
    given = {"jwt_secret": SECRET, "prefix": f"t{secrets.token_hex(5)}", **given}
    return Settings(url=url, **given)


def environment(settings: Settings) -> dict[str, str]:
    """The same settings for another process."""
    values = settings.model_dump(exclude_defaults=True, mode="json")
    for name in values:
        if isinstance(value := getattr(settings, name), SecretStr):
            values[name] = value.get_secret_value()
    return {
        f"SEMANTIK_REALTIME_{name.upper()}": ",".join(value)
        if isinstance(value, list)
        else str(value)
        for name, value in values.items()
    }


async def until(condition: Callable[[], Any], seconds: float = 10.0, what: object = "") -> None:
    """Wait for ``condition``, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            described = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:g} s: {described}")
        await asyncio.sleep(0.01)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leaving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def main_loop(self) -> None:
        # uvicorn's own looks ten times a second whether it is to end; there are many tests.
        await self.on_tick(0)
        await self.leaving.wait()


class Site:
    """A running web server: the place to connect to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.root = ""
        """Where the application is mounted."""

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.root}"

    @property
    def native(self) -> str:
        return f"ws://127.0.0.1:{self.port}{self.root}/realtime/ws"

    def compat(self, job: str, path: str = "/ws/jobs/{}") -> str:
        return f"ws://127.0.0.1:{self.port}{self.root}{path.format(job)}"

    def client(self, user: object = "7", **options: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token(user)}"}
        return httpx.AsyncClient(base_url=self.http, headers=headers, timeout=20, **options)


class Here(Site):
    """An application served by uvicorn on the test's own loop, so that the test can look inside."""

    def __init__(self, port: int, app: FastAPI, server: uvicorn.Server) -> None:
        super().__init__(port)
        self.app = app
        self.server = server

    @property
    def rt(self) -> Realtime:
        return self.app.state.realtime


@contextlib.asynccontextmanager
async def serve(app: FastAPI, **options: Any) -> AsyncIterator[Here]:
    """Serve ``app`` on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, **options)
    server = _Uvicorn(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started or running.done(), 20, "uvicorn starts")
        yield Here(listener.getsockname()[1], app, server)
    finally:
        server.should_exit = True
        server.leaving.set()
        await running
        listener.close()


@contextlib.asynccontextmanager
async def site_of(settings: Settings, **options: Any) -> AsyncIterator[Here]:
    """The plainest host there is."""
    app = FastAPI()
    Realtime(settings, **options).install(app)
    async with serve(app) as here:
        yield here


class Process(Site):
    """A web server in a process of its own."""

    def __init__(self, settings: Settings, *, app: str = "webhost:app", **variables: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(self._listener.getsockname()[1])
        command = [sys.executable, "-m", "uvicorn", app, "--log-level", "warning"]
        # Otherwise uvicorn waits for ever for a peer that takes nothing.
        command += ["--timeout-graceful-shutdown", "3"]
        self.process = subprocess.Popen(
            [*command, "--app-dir", str(HERE), "--fd", str(self._listener.fileno())],
            pass_fds=[self._listener.fileno()],
            env={**os.environ, **environment(settings), **variables},
        )
        self._listener.close()

    async def started(self) -> Process:
        async with httpx.AsyncClient(base_url=self.http, timeout=10) as http:

            async def answers() -> bool:
                assert self.process.poll() is None, "the server has ended"
                try:
                    return (await http.get("/alive")).status_code == 200
                except httpx.TransportError:
                    return False

            deadline = time.monotonic() + 20
            while not await answers():
                assert time.monotonic() < deadline, "the server did not start"
                await asyncio.sleep(0.05)
        return self

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, seconds: float = 10.0) -> int:
        await until(lambda: self.process.poll() is not None, seconds, "the server ends")
        return self.process.returncode

    def remove(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.asynccontextmanager
async def fleet_of(
    count: int, settings: Settings, **variables: str
) -> AsyncIterator[list[Process]]:
    """Several web server processes with the same settings."""
    servers: list[Process] = []
    try:
        servers += [Process(settings, **variables) for _ in range(count)]
        for server in servers:
            await server.started()
        yield servers
    finally:
        for server in servers:
            server.remove()


def one_draft(topic: str, type: str, *, key: str, owner: str | None = None, **given: Any) -> Draft:
    """One event for one topic, of now unless ``time`` is given."""
    when = given.pop("time", None) or now_text()
    [draft] = make_drafts({topic: owner}, type, when, key, **given)
    return draft


class Publisher:
    """Numbers events of topics: ``data.i`` is 0, 1, 2 … in each."""

    def __init__(self, settings: Settings, rt: Runtime | None = None) -> None:
        self.rt = rt or Runtime(settings)
        self.count: Counter[str] = Counter()

    async def publish(
        self, topic: str, number: int = 1, *, batch: int = 20, owner: str = "7"
    ) -> None:
        """Append ``number`` running events and wait until they are in the log."""
        for start in range(0, number, batch):
            for _ in range(min(batch, number - start)):
                self.emit(topic, owner=owner)
            await self.flush()

    def emit(self, topic: str, *, owner: str = "7", **more: Any) -> None:
        """Append one event soon; from any thread."""
        i = self.count[topic]
        self.count[topic] += 1
        key = topic.partition(":")[2]
        state = {"status": "running", "progress": {"current": i + 1, "total": None}}
        draft = {"key": key, "state": state, "data": {"i": i}, "owner": owner, **more}
        self.rt.emitter.emit(one_draft(topic, draft.pop("type", "step"), **draft))

    async def end(self, topic: str, type: str = "job_completed", *, owner: str = "7") -> None:
        """End the job of a topic."""
        key = topic.partition(":")[2]
        state = {"status": type.removeprefix("job_"), "progress": {"current": 1, "total": 1}}
        self.emit(topic, type=type, state=state, terminal=True, job=key, attempt=None, owner=owner)
        await self.flush()

    async def flush(self, seconds: float = 20.0) -> None:
        assert await asyncio.to_thread(self.rt.emitter.flush, seconds), "not written"

    def close(self) -> None:
        self.rt.close()


class Way:
    """A way to a server on this machine that can be cut at any moment."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.loses_answers = False
        """Whether what the server says next is lost, and its connection with it."""
        self.port = 0

    async def __aenter__(self) -> Way:
        self._server = await asyncio.start_server(self._meet, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        while self._carrying:
            self.cut()
            await asyncio.wait(self._carrying)

    def cut(self) -> int:
        """End every connection without a word; gives how many."""
        for writer in self._writers:
            writer.transport.abort()
        return len(self._writers) // 2

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Every connection is cut, and none is made meanwhile."""
        self._is_closed = True
        self.cut()
        yield
        self._is_closed = False

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_closed:
            writer.transport.abort()
            return
        try:
            other_reader, other = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, other}
        there = self._carry(reader, other)
        back = self._carry(other_reader, writer, are_answers=True)
        for task in map(asyncio.create_task, (there, back)):
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        are_answers: bool = False,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                if are_answers and self.loses_answers:
                    break
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.transport.abort()


@contextlib.asynccontextmanager
async def deaf(site: Here, topic: str) -> AsyncIterator[None]:
    """What is appended to ``topic`` meanwhile is not told to this server."""
    await site.rt.backend.unsubscribe(topic)
    yield
    await site.rt.backend.subscribe(topic, site.rt.web.hub)


class Native:
    """A client that follows the rules of docs/protocol.md, and keeps what it was given.

    ``seen`` has the events that were applied (live and replayed) in order of
    arrival, ``history`` those that came with a snapshot.
    """

    def __init__(self, site: Site, *topics: str, user: str = "7", history: int = 0, **options: Any):
        self.site = site
        self.user = user
        self.want = dict.fromkeys(topics, history)
        self.views = {topic: View(topic) for topic in topics}
        self.seen: dict[str, list[dict[str, Any]]] = {topic: [] for topic in topics}
        self.history: dict[str, list[dict[str, Any]]] = {topic: [] for topic in topics}
        self.syncs: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []
        self.conflated = 0
        """Events that were left out."""
        self.holes: list[object] = []
        """Batches that lack something, or are out of order."""
        self.resubscribed = 0
        self.connections = 0
        self.closed: int | None = None
        self.socket: ClientConnection | None = None
        self._options = options
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Native:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect and follow, from the cursors there are."""
        query = self._options.get("query", f"?token={token(self.user)}")
        rest = {name: value for name, value in self._options.items() if name != "query"}
        self.socket = await connect(
            self.site.native + query, subprotocols=[SUBPROTOCOL], max_size=None, **rest
        )
        self.connections += 1
        self.closed = None
        self._reading = asyncio.create_task(self._read(self.socket))

    async def close(self) -> None:
        """Leave in good order."""
        if self.socket is not None:
            await self.socket.close()
        await self._stopped()

    async def cut(self) -> None:
        """The network is gone from one moment to the next."""
        assert self.socket is not None
        self.socket.transport.abort()
        await self._stopped()

    async def _stopped(self) -> None:
        if self._reading is not None:
            await self._reading
            self._reading = None

    async def send(self, frame: object) -> None:
        assert self.socket is not None
        await self.socket.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def subscribe(self, *topics: str) -> None:
        for topic in topics or self.want:
            self._meet(topic)
            frame = {
                "op": "subscribe",
                "topics": {topic: self.views[topic].cursor},
                "history": self.want.setdefault(topic, 0),
            }
            await self.send(frame)

    def _meet(self, topic: str) -> None:
        self.views.setdefault(topic, View(topic))
        self.seen.setdefault(topic, [])
        self.history.setdefault(topic, [])

    def ops(self, op: str) -> list[dict[str, Any]]:
        """The frames of one kind so far."""
        return [frame for frame in self.frames if frame["op"] == op]

    async def wait_for(self, op: str, count: int = 1, seconds: float = 10.0) -> dict[str, Any]:
        """The ``count``-th frame of one kind."""
        await until(lambda: len(self.ops(op)) >= count, seconds, lambda: (op, self))
        return self.ops(op)[count - 1]

    async def synced(self, *topics: str) -> None:
        """Every topic has been answered."""
        wanted = topics or tuple(self.want)
        await until(lambda: all(self.views[topic].synced for topic in wanted), 10, lambda: self)

    async def has(self, topic: str, number: int, seconds: float = 15.0) -> None:
        """The log's first ``number`` events are known."""
        await until(lambda: self.views[topic].offset >= number, seconds, lambda: self)

    def numbers(self, topic: str) -> list[int]:
        """``data.i`` of the applied events."""
        return [event["data"]["i"] for event in self.seen[topic]]

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                await self._take(json.loads(text))
        except ConnectionClosed:
            pass
        # 1006 stands for an end without a close frame.
        self.closed = socket.close_code
        for view in self.views.values():
            view.synced = False

    async def _take(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        gaps: list[str] = []
        match frame["op"]:
            case "welcome":
                await self.subscribe()
            case "sync":
                topic = frame["topic"]
                self.syncs.append(frame)
                self._meet(topic)
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
        # What the server sends again is ignored by the rule, but it has no reason to.
        again = [event for event in batch["events"] if event["offset"] <= batch["prev"]]
        if again or missing > batch.get("conflated", 0) or offsets != sorted(set(offsets)):
            self.holes.append((topic, before, batch))
        self.conflated += missing
        self.seen[topic] += events

    def __repr__(self) -> str:
        places = {topic: (view.offset, view.synced) for topic, view in self.views.items()}
        ops = Counter(frame["op"] for frame in self.frames)
        return f"Native({places}, {dict(ops)}, closed={self.closed}, last={self.frames[-2:]})"


class Stream(Native):
    """The same over server-sent events, read as a browser's EventSource does.

    ``headers`` and ``query`` are sent beside what it sends by itself; with
    ``headers`` given there is no token in the query.
    """

    def __init__(self, site: Site, *topics: str, path: str | None = None, **options: Any):
        super().__init__(site, *topics, **options)
        self.path = path
        self.status = 0
        self.answer: httpx.Response | None = None
        self.comments = 0
        self.retries: list[int] = []
        self.last_id = ""
        self.ended_well = False
        """Whether the answer was whole: the server has ended it."""
        self.reading = asyncio.Event()
        self.reading.set()

    async def open(self) -> None:
        """Ask for the stream, after what was seen last; ``status`` says what came of it."""
        self._http = httpx.AsyncClient(timeout=30)
        path, query = self.path, dict(self._options.get("query", {}))
        if path is None:
            path, query["topic"] = "/realtime/events", list(self.want)
        headers = self._options.get("headers")
        if headers is None:
            query["token"] = token(self.user)
        if history := max(self.want.values(), default=0):
            query["history"] = history
        again = {"Last-Event-ID": self.last_id} if self.last_id else {}
        url = httpx.URL(self.site.http + path).copy_merge_params(query)
        request = self._http.build_request("GET", url, headers={**(headers or {}), **again})
        self.answer = await self._http.send(request, stream=True)
        self.status = self.answer.status_code
        self.connections += 1
        self.ended_well = False
        self._reading = asyncio.create_task(self._read_blocks(self.answer))

    async def cut(self) -> None:
        """Leave from one moment to the next."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None
        await self._http.aclose()
        for view in self.views.values():
            view.synced = False

    close = cut

    async def ended(self, seconds: float = 10.0) -> dict[str, Any]:
        """The server has ended the stream; its last frame."""
        assert self._reading is not None
        await until(self._reading.done, seconds, lambda: self)
        return self.frames[-1]

    async def subscribe(self, *topics: str) -> None:
        # Nobody can ask again on a stream.
        self.holes.append(("gap", topics))

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
                                await self._take(json.loads(data))
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
                await self.reading.wait()
            self.ended_well = True
        except httpx.TransportError:
            pass


class Compat:
    """A browser of the compatibility wire: it takes whatever comes."""

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

    async def __aenter__(self) -> Compat:
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

    def of(self, type: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == type]

    async def wait_for(self, type: str, count: int = 1, seconds: float = 10.0) -> dict[str, Any]:
        await until(
            lambda: len(self.of(type)) >= count,
            seconds,
            lambda: (type, self.messages[-3:], self.closed),
        )
        return self.of(type)[count - 1]

    async def end(self, seconds: float = 10.0) -> int:
        """The close code; 1006 stands for an end without a close frame."""
        await until(lambda: self.closed is not None, seconds, lambda: self.messages[-3:])
        assert self.closed is not None
        return self.closed


async def refused(url: str, **options: Any) -> tuple[int, str]:
    """What becomes of a connection that is not wanted: HTTP status, or close code and reason."""
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
async def bystander(site: Site, publisher: Publisher) -> AsyncIterator[Native]:
    """Somebody else on the same server, who must notice nothing."""
    topic = f"job:bystander-{secrets.token_hex(3)}"
    await publisher.publish(topic, 1, owner="by")
    async with Native(site, topic, user="by") as client:
        await client.synced()
        await publisher.publish(topic, 5, owner="by")
        yield client
        await publisher.publish(topic, 5, owner="by")
        await client.has(topic, 11)
        assert client.numbers(topic) == list(range(1, 11))
        assert client.connections == 1
        assert not client.holes
        assert client.closed is None
        assert not client.ops("error")
