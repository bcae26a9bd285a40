"""Watchers of every kind, which reconnect for ever and give what they show to a `Judge`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
from clients import CompatClient, NativeClient, SseClient
from configuration import token
from oracle import Judge
from web_servers import WebServer
from websockets.exceptions import WebSocketException

from semantik_realtime import client as python_client
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.fold import View

RETRY_SECONDS = 0.1
SCRIPT = Path(__file__).parent / "js_watcher.mjs"
_BROKEN = (OSError, httpx.HTTPError, WebSocketException)


class Watcher:
    """One watcher of one topic, at one address.

    Args:
        address: of a web server, or of the proxy before it.
        topic: what it watches.
    """

    kind = ""

    def __init__(self, address: WebServer, topic: str) -> None:
        self.address = address
        self.topic = topic
        self.judge = Judge(self.kind)
        self.token_seconds = 600.0
        """How long the tokens of its next connections are valid."""
        self.connections = 0
        self.degraded = 0
        """How often it was told that the backend is away."""
        self.heard_at = time.monotonic()
        """When it was last shown an event."""

    @property
    def cursor(self) -> str | None:
        raise NotImplementedError

    @property
    def states(self) -> Mapping[str, Any]:
        raise NotImplementedError

    async def run(self) -> None:
        """Watch until cancelled."""
        raise NotImplementedError

    def token(self) -> str:
        return token("7", seconds=self.token_seconds)

    def show(self, event: Mapping[str, Any]) -> None:
        self.heard_at = time.monotonic()
        self.judge.shown(int(event["offset"]), int(event["data"]["i"]))


class _Judging(NativeClient):
    """Gives a watcher what it applies; on `SseClient` too."""

    watcher: Watcher

    async def _receive(self, frame: dict[str, Any]) -> None:
        await super()._receive(frame)
        self.frames.clear()
        self.syncs.clear()
        view = self.views[self.watcher.topic]
        if frame["op"] == "degraded":
            self.watcher.degraded += 1
        elif frame["op"] == "sync" and frame["mode"] == "snapshot":
            # Nothing is missing before the first snapshot: the watcher knew nothing.
            events = view.gap.events if view.gap else 0
            self.watcher.judge.told(frame["reason"], events if self.watcher.judge.reasons else None)

    def _apply(self, topic: str, batch: dict[str, Any], gaps: list[str]) -> None:
        super()._apply(topic, batch, gaps)
        events, self.applied[topic] = self.applied[topic], []
        if events and (gap := self.views[topic].gap):
            self.watcher.judge.told(gap.reason, gap.events)
        for event in events:
            self.watcher.show(event)


class _Sse(_Judging, SseClient):
    async def subscribe(self, *topics: str) -> None:
        # A stream cannot subscribe again: reconnect with the last id.
        assert self.answer is not None
        await self.answer.aclose()


class NativeWatcher(Watcher):
    """Over a WebSocket, by the rules of docs/protocol.md."""

    kind = "native"
    client_class: type[NativeClient] = _Judging

    def __init__(self, address: WebServer, topic: str) -> None:
        super().__init__(address, topic)
        self.client = self.client_class(address, topic)
        self.client.watcher = self  # type: ignore[attr-defined]

    @property
    def view(self) -> View:
        return self.client.views[self.topic]

    @property
    def cursor(self) -> str | None:
        return self.view.cursor

    @property
    def states(self) -> Mapping[str, Any]:
        return self.view.states

    async def run(self) -> None:
        try:
            while True:
                self.client._options["query"] = self.query()
                with contextlib.suppress(*_BROKEN):
                    await self.client.open()
                    self.connections += 1
                    await asyncio.shield(self.client._reading)  # type: ignore[arg-type]
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            if self.client._reading is not None and not self.client._reading.done():
                await self.client.abort()

    def query(self) -> Any:
        return f"?token={self.token()}"


class SseWatcher(NativeWatcher):
    """Over server-sent events, as a browser's EventSource reads them."""

    kind = "sse"
    client_class = _Sse

    def query(self) -> Any:
        return {"token": self.token()}

    async def run(self) -> None:
        self.client._options["headers"] = None
        while True:
            self.client._options["headers"] = {"Authorization": f"Bearer {self.token()}"}
            self.client._options["query"] = {}
            try:
                await self.client.open()
                self.connections += 1
                await self.client._reading  # type: ignore[misc]
            except (*_BROKEN, httpx.StreamError):
                pass
            finally:
                with contextlib.suppress(Exception):
                    await self.client.abort()  # type: ignore[attr-defined]
            await asyncio.sleep(RETRY_SECONDS)


class CompatWatcher(Watcher):
    """A page of the compatibility wire, which resumes with its last id."""

    kind = "compat"

    def __init__(self, address: WebServer, topic: str) -> None:
        super().__init__(address, topic)
        self.last_id = ""
        self.status: dict[str, Any] = {}
        """Status and progress that the page shows."""

    @property
    def cursor(self) -> str | None:
        return self.last_id or None

    @property
    def states(self) -> Mapping[str, Any]:
        return self.status

    async def run(self) -> None:
        job = self.topic.partition(":")[2]
        while True:
            query = {"last_id": self.last_id} if self.last_id else {}
            query["token"] = self.token()
            client = CompatClient(self.address.compat_url(job), user=None, query=query)
            with contextlib.suppress(*_BROKEN):
                async with client:
                    self.connections += 1
                    while not client._reading.done() or client.messages:
                        while client.messages:
                            self.receive(client.messages.pop(0))
                        await asyncio.sleep(0.02)
            await asyncio.sleep(RETRY_SECONDS)

    def receive(self, message: dict[str, Any]) -> None:
        data, id = message.get("data") or {}, message.get("id")
        if message["type"] == "degraded":
            self.degraded += 1
        if "status" in data and not message.get("provisional"):
            self.status = {name: data.get(name) for name in ("status", "current")}
        if not id:
            return
        cursor, before = Cursor.parse(id), Cursor.parse(self.last_id or id)
        is_rewritten = cursor.epoch != before.epoch
        if message["type"] == "current_state" or is_rewritten:
            # The state in place of what came before, or of a log that is lost.
            is_rewritten |= cursor.offset <= before.offset and id != self.last_id
            self.judge.told("current_state", None, rewrites=is_rewritten, replaces=True)
        self.last_id = id
        if message["type"] == "step" and not message.get("replayed"):
            self.show({"offset": cursor.offset, "data": data})


class PythonWatcher(Watcher):
    """`semantik_realtime.client.watch`."""

    kind = "python"

    def __init__(self, address: WebServer, topic: str) -> None:
        super().__init__(address, topic)
        self.view = View(topic)

    @property
    def cursor(self) -> str | None:
        return self.view.cursor

    @property
    def states(self) -> Mapping[str, Any]:
        return self.view.states

    async def run(self) -> None:
        following = python_client.watch(self.address.native_url, self.topic, token=self.token())
        async with aclosing(following) as updates:
            async for update in updates:
                self.view = update.view
                self.degraded += update.connection == "degraded" and not update.events
                if update.gap:
                    self.judge.told(update.gap.reason, update.gap.events)
                elif not self.judge.reasons and update.view.reason:
                    self.judge.told(update.view.reason, None)
                self.connections += update.connection == "reconnecting"
                for event in update.events:
                    self.show(event)


class JavaScriptWatcher(Watcher):
    """The JavaScript client, in a process of node."""

    kind = "js"

    def __init__(self, address: WebServer, topic: str) -> None:
        super().__init__(address, topic)
        self._cursor: str | None = None
        self._states: dict[str, Any] = {}

    @property
    def cursor(self) -> str | None:
        return self._cursor

    @property
    def states(self) -> Mapping[str, Any]:
        return self._states

    async def run(self) -> None:
        node = shutil.which("node")
        assert node is not None, "node is missing"
        process = await asyncio.create_subprocess_exec(
            *(node, "--experimental-websocket", "--no-warnings", str(SCRIPT)),
            *(self.address.native_url, self.topic, self.token()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        # Its first view is painted later than its first event arrives.
        self.judge.told("new", None)
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                self.receive(json.loads(line))
            raise AssertionError("node has ended")
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def receive(self, given: dict[str, Any]) -> None:
        match given:
            case {"event": event}:
                self.show(event)
            case {"gap": gap}:
                self.judge.told(gap["reason"], gap["events"])
            case {"view": view}:
                self._cursor, self._states = view["cursor"], view["states"]
            case {"connection": state}:
                self.degraded += state == "degraded"
                self.connections += state == "live"


KINDS: tuple[type[Watcher], ...] = (
    NativeWatcher,
    SseWatcher,
    CompatWatcher,
    PythonWatcher,
    JavaScriptWatcher,
)
