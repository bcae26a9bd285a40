"""The contract on NATS JetStream; the model is in the package's docstring."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Receipt
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Sink, Snapshot, Status, Top, hookimpl

from semantik_realtime_nats.link import Link, explain
from semantik_realtime_nats.reader import read_snapshot, read_tops
from semantik_realtime_nats.settings import Names, check_keys, load_nats_settings, plan_access
from semantik_realtime_nats.subscriber import Subscriber
from semantik_realtime_nats.sweep import sweep_for_ever
from semantik_realtime_nats.thread import LoopThread
from semantik_realtime_nats.writer import Writer


class NatsBackend:
    """NATS 2.11 or newer, with JetStream."""

    def __init__(self, settings: Settings) -> None:
        own = load_nats_settings()
        check_keys(settings.max_keys)
        self._settings = settings
        self._access = plan_access(settings.url, own)
        self._names = Names(settings, own)
        self._replicas = own.replicas
        self._writer = LoopThread(
            lambda: Writer(settings, self._names, self._connect), lambda writer: writer.close()
        )
        self._feed: Subscriber | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeping: asyncio.Task[None] | None = None

    # Writes: synchronous, from any thread.

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        if not drafts:
            return []
        return self._writer.run(lambda writer: writer.publish(drafts))

    @hookimpl
    def claim(self, topic: str, job: str, token: str) -> int:
        return self._writer.run(lambda writer: writer.claim(topic, job, token))

    @hookimpl
    def delete(self, topic: str) -> bool:
        return self._writer.run(lambda writer: writer.delete(topic))

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        return self._writer.run(lambda writer: writer.lease(name, holder, limit, seconds))

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        return self._writer.run(lambda writer: writer.release(name, holder))

    @hookimpl
    def close_writer(self) -> None:
        self._writer.close()

    # Reads: coroutines on one loop.

    @hookimpl
    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._feed is not None and self._loop is loop:
            return
        # What belonged to another loop (a test client's) ended with it.
        self._feed, self._sweeping, self._loop = None, None, loop
        feed = Subscriber(self._names, self._connect, self._settings.timeout_seconds)
        await feed.open()
        self._feed = feed
        self._sweeping = asyncio.create_task(
            sweep_for_ever(feed.link, self._names, secrets.token_hex(6)),
            name="semantik-realtime-sweep",
        )

    @hookimpl
    async def close(self) -> None:
        feed, self._feed = self._feed, None
        sweeping, self._sweeping = self._sweeping, None
        if sweeping is not None:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
        if feed is not None:
            await feed.close()

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        await self._reader().subscribe(topic, sink)

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        if self._feed is not None:
            await self._feed.unsubscribe(topic)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        async with self._reading() as link:
            return await read_snapshot(
                link, self._names, topic, after, history, self._settings.retention_events
            )

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        async with self._reading() as link:
            return await read_tops(link, self._names, topics)

    @hookimpl
    async def status(self) -> Status:
        own: Link | None = None
        try:
            link = self._feed.current if self._feed is not None else None
            if link is None:
                link = own = await self._connect()
            async with asyncio.timeout(self._settings.timeout_seconds):
                info = await link.info()
        except Exception as error:
            return Status("nats", False, str(explain(error)))
        finally:
            if own is not None:
                await own.close()
        config, state = info["config"], info["state"]
        server = (
            f"nats {link.version}, JetStream, stream {config['name']}: "
            f"{state['messages']} messages, {state['bytes'] / 2**20:.1f} MB"
        )
        return Status("nats", True, server, _warnings(config), link.clock_ahead_seconds)

    async def _connect(self) -> Link:
        return await Link.open(
            self._access,
            self._names.config(self._replicas),
            self._names.needed_config(),
            self._settings.timeout_seconds,
        )

    def _reader(self) -> Subscriber:
        if self._feed is None:
            raise BackendUnavailable("the backend is not open")
        return self._feed

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[Link]:
        feed = self._reader()
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                yield await feed.link()
        except Exception as error:
            raise explain(error) from error


def _warnings(config: dict[str, Any]) -> list[str]:
    stream = f"the stream {config['name']}"
    warnings = []
    if config.get("storage") != "file":
        warnings.append(
            f"{stream} is in memory: a restart forgets all events; delete it, and it is created "
            "again on disk"
        )
    elif config.get("num_replicas", 1) == 1:
        warnings.append(
            f"{stream} has one replica: unless the server is set to sync_interval: always, a "
            "power failure forgets what was acknowledged in the last two minutes; set that, or "
            "SEMANTIK_REALTIME_NATS_REPLICAS=3 before the first start"
        )
    return warnings
