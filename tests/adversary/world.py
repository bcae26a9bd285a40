"""Engine, web servers, publishers and watchers, each link behind a proxy, and the oracle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from configuration import make_settings
from engine_servers import Engine, in_thread, running_engine
from hostile_proxy import HostileProxy
from oracle import Truth
from publisher import Publisher
from watchers import KINDS, CompatWatcher, Watcher
from web_servers import ServerProcess, WebServer

from semantik_realtime import client as python_client
from semantik_realtime.config import Settings
from semantik_realtime.core.fold import View
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.runtime import Runtime
from semantik_realtime.web.wires.wire import states_of

TOPICS = ("job:1", "job:2")
KEPT_EVENTS = 400
"""Events that a topic's log keeps."""
JUDGED_EVENTS = 250
"""So many newest events must be in the log: fewer than it keeps."""
PAUSE_SECONDS = 0.02
"""Between two events of a topic."""
SLOW_EMIT_SECONDS = 1.0
"""A task must not wait so long for one event (G6); the machine may be busy."""


class Result(msgspec.Struct):
    """What one fault did; a line of the soak's output."""

    number: int
    fault: str
    engine: str
    seed: int
    fault_seconds: float = 0.0
    live_seconds: dict[str, float] = {}
    """From the end of the fault until a watcher of each kind had everything; -1: never."""
    told: dict[str, list[str]] = {}
    """What the watchers of each kind were told in place of events."""
    degraded: dict[str, int] = {}
    reconnected: dict[str, int] = {}
    shown: int = 0
    repeated: int = 0
    lost: int = 0
    """Acknowledged events that the engine has lost."""
    faults: list[str] = []
    """The broken guarantees."""


class World:
    """Everything that runs. Made by `running_world`."""

    def __init__(self, engine_name: str, engine: Engine, seed: int) -> None:
        self.engine_name, self.engine, self.seed = engine_name, engine, seed
        self.rng = random.Random(seed)
        self.settings: Settings
        self.servers: list[ServerProcess] = []
        self.web_links: list[HostileProxy] = []
        self.engine_links: list[HostileProxy] = []
        """Of the servers, then of the publishers; empty if the engine has several addresses."""
        self.publishers: list[Publisher] = []
        self.watchers: list[Watcher] = []
        self.number = 0
        self.slowest_emit = 0.0
        self._running: dict[Watcher, asyncio.Task[None]] = {}
        self._known_lost: dict[str, set[int]] = {topic: set() for topic in TOPICS}

    def server_settings(self, place: int) -> Settings:
        """Return the settings of a process: with the address of its own proxy, if it has one."""
        return self.settings.model_copy(update={"url": self.process_url(place)})

    def process_url(self, place: int) -> str:
        if not self.engine_links:
            return self.engine.url
        scheme = self.engine.url.partition("://")[0]
        database = "/0" if scheme == "redis" else ""
        return f"{scheme}://127.0.0.1:{self.engine_links[place].port}{database}"

    async def start_server(self, place: int) -> ServerProcess:
        """Start a web server; its proxy leads to it when it answers."""
        folder = str(Path(__file__).parent)
        server = ServerProcess(
            self.server_settings(place), app="stepped_host:app", PYTHONPATH=folder
        )
        await server.wait_started()
        return server

    def emit(self, place: int, **more: Any) -> None:
        """Publish one event of the topic at ``place``."""
        began = time.monotonic()
        self.publishers[place].emit(TOPICS[place], **more)
        self.slowest_emit = max(self.slowest_emit, time.monotonic() - began)

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Publish to all topics in the block."""

        async def publish() -> None:
            while True:
                for place in range(len(TOPICS)):
                    self.emit(place)
                await asyncio.sleep(PAUSE_SECONDS)

        task = asyncio.create_task(publish())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def run(self, name: str, attack: Any, bound_seconds: float) -> Result:
        """Let one fault happen while events flow; judge what every watcher was shown."""
        self.number += 1
        rng = random.Random(f"{self.seed}/{self.number}/{name}")
        result = Result(self.number, name, self.engine_name, self.seed)
        before = {w: (w.degraded, w.connections, len(w.judge.reasons)) for w in self.watchers}
        counts = [(w.judge.count, w.judge.repeated) for w in self.watchers]
        child = f"c{self.number % 4}"
        began = time.monotonic()
        async with self.flowing():
            await asyncio.sleep(rng.uniform(0.05, 0.2))
            ends = asyncio.create_task(self._run_children(child, rng.uniform(0.1, 0.5)))
            await attack(self, rng)
            result.fault_seconds = round(time.monotonic() - began, 2)
            await ends
            await asyncio.sleep(0.05)
        truths = await self._rest(result, time.monotonic(), bound_seconds)
        for topic, truth in truths.items():
            result.faults += truth.faults()
            new = set(truth.lost) - self._known_lost[topic]
            self._known_lost[topic] |= new
            result.lost += len(new)
            if not new and truth.states.get(child) != {"status": "completed"}:
                result.faults.append(f"G4: the end of {child} is not in the log")
        after = [(w.judge.count, w.judge.repeated) for w in self.watchers]
        for watcher in list(self.watchers):
            truth, cursor, states = self._compared(watcher, truths)
            watcher.judge.rest(truth, cursor, states)
            degraded, connections, told = before[watcher]
            kind = watcher.kind
            result.degraded[kind] = result.degraded.get(kind, 0) + watcher.degraded - degraded
            result.reconnected[kind] = (
                result.reconnected.get(kind, 0) + watcher.connections - connections
            )
            reasons = {*result.told.get(kind, ()), *watcher.judge.reasons[told:]}
            result.told[kind] = sorted(reasons)
            result.faults += [f"{kind} {watcher.topic}: {f}" for f in watcher.judge.faults]
            if self._running[watcher].done():
                result.faults.append(f"{kind} has ended: {self._running[watcher].exception()!r}")
            elif not watcher.judge.faults:
                continue
            await self._replace(watcher)
        result.shown = sum(n - b for (n, _), (b, _) in zip(after, counts, strict=True))
        result.repeated = sum(n - b for (_, n), (_, b) in zip(after, counts, strict=True))
        if self.slowest_emit > SLOW_EMIT_SECONDS:
            result.faults.append(f"G6: publishing one event took {self.slowest_emit:.2f} s")
        self.slowest_emit = 0.0
        return result

    async def _run_children(self, child: str, seconds: float) -> None:
        """Run a child of each job, which ends while the fault lasts, or soon after."""
        for place in range(len(TOPICS)):
            self.emit(place, key=child, state={"status": "running"})
        await asyncio.sleep(seconds)
        for place in range(len(TOPICS)):
            self.emit(place, key=child, state={"status": "completed"}, terminal=True)

    def add(self, watcher: Watcher) -> None:
        """Run a watcher."""
        self.watchers.append(watcher)
        self._running[watcher] = asyncio.create_task(watcher.run())

    async def _replace(self, watcher: Watcher) -> None:
        """Replace a watcher that has shown a fault by one that knows nothing."""
        task = self._running.pop(watcher)
        task.cancel()
        await asyncio.wait([task])
        self.watchers.remove(watcher)
        self.add(type(watcher)(watcher.address, watcher.topic))

    async def close_watchers(self) -> None:
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())

    async def _rest(self, result: Result, healed: float, bound: float) -> dict[str, Truth]:
        """Wait until all events are in the log and all watchers have them, or the bound is over."""
        deadline = healed + bound
        for publisher in self.publishers:
            left = max(deadline - time.monotonic(), 0.1)
            if not await in_thread(publisher.rt.emitter.flush, left):
                result.faults.append("G5: what was published is not in the log in time")
        truths = await self.truths()
        read_at = time.monotonic()
        waiting = set(self.watchers)
        while waiting:
            now = time.monotonic()
            for watcher in list(waiting):
                truth, cursor, states = self._compared(watcher, truths)
                if (cursor, dict(states)) == (truth.cursor, dict(truth.states)):
                    waiting.discard(watcher)
                    known = result.live_seconds.get(watcher.kind, 0.0)
                    result.live_seconds[watcher.kind] = round(max(known, now - healed), 2)
            if now > deadline:
                break
            if now > read_at + 1:
                # A failover may still go on, and rewrite the log.
                truths, read_at = await self.truths(), time.monotonic()
                waiting = {
                    w
                    for w in self.watchers
                    if self._compared(w, truths)[1] != self._compared(w, truths)[0].cursor
                } | waiting
            await asyncio.sleep(0.02)
        for watcher in waiting:
            result.live_seconds[watcher.kind] = -1.0
        return truths

    def _compared(
        self, watcher: Watcher, truths: Mapping[str, Truth]
    ) -> tuple[Truth, str | None, Mapping[str, Any]]:
        """Return the truth in the watcher's form, and the watcher's position and states."""
        truth = truths[watcher.topic]
        if isinstance(watcher, CompatWatcher):
            state = truth.states.get(watcher.topic.partition(":")[2]) or {}
            progress = state.get("progress") or {}
            flat = {"status": state.get("status"), "current": progress.get("current")}
            truth = msgspec.structs.replace(truth, states=flat)
        return truth, watcher.cursor, watcher.states

    async def truths(self) -> dict[str, Truth]:
        """Read the logs from the engine itself."""
        reader = Runtime(self.settings.model_copy(update={"url": self.engine.url}))
        backend = reader.unguarded
        for attempt in range(40):
            try:
                await backend.open()
                read = {topic: await backend.snapshot(topic, None, 1000) for topic in TOPICS}
                break
            except Exception:
                if attempt == 39:
                    raise
                await asyncio.sleep(0.5)
            finally:
                await backend.close()
        reader.close(0)
        return {
            topic: _truth(topic, read[topic], self.publishers[place].count[topic])
            for place, topic in enumerate(TOPICS)
        }


def _truth(topic: str, read: Snapshot, published: int) -> Truth:
    events = [(event.offset, json.loads(event.json)["data"]["i"]) for event in read.events]
    view = View(topic)
    view.folded = {key: json.loads(state) for key, state in states_of(topic, read).items()}
    first_kept = max(published - JUDGED_EVENTS, 0)
    return Truth(published, tuple(events), str(read.cursor), view.states, first_kept)


@contextlib.asynccontextmanager
async def running_world(
    engine_name: str, seed: int, kinds: tuple[type[Watcher], ...] = KINDS
) -> AsyncIterator[World]:
    """Run everything; each kind of watcher watches each topic, on alternating servers."""
    python_client.LONGEST_RETRY_SECONDS = 2.0
    async with AsyncExitStack() as stack:
        engine = stack.enter_context(running_engine(engine_name))
        world = World(engine_name, engine, seed)
        world.settings = make_settings(
            engine.url,
            backend=engine.backend,
            timeout_seconds=2.0,
            tops_seconds=1.0,
            retention_events=KEPT_EVENTS,
        )
        for name, value in (("topic", TOPICS[0]), ("stream", world.settings.prefix)):
            if hasattr(engine, name):
                setattr(engine, name, value)
        if engine.is_single:
            for _ in range(2 + len(TOPICS)):
                link = HostileProxy(engine.first.port, world.rng)  # type: ignore[attr-defined]
                world.engine_links.append(await stack.enter_async_context(link))
        for place in range(len(TOPICS)):
            publisher = Publisher(world.server_settings(2 + place))
            stack.callback(publisher.rt.close, 0)
            world.publishers.append(publisher)
            await publisher.publish(TOPICS[place], 1)
        stack.callback(lambda: [server.kill() for server in world.servers])
        world.servers += await asyncio.gather(*map(world.start_server, range(2)))
        for server in world.servers:
            link = HostileProxy(server.port, world.rng)
            world.web_links.append(await stack.enter_async_context(link))
        stack.push_async_callback(world.close_watchers)
        for place, topic in enumerate(TOPICS):
            for at, kind in enumerate(kinds):
                address = WebServer(world.web_links[(place + at) % 2].port)
                world.add(kind(address, topic))
        yield world
