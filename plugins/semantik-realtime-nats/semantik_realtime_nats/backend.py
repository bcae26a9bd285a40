"""The hooks of a backend on NATS JetStream; the package's docstring has the model."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Receipt
from semantik_realtime.core.holding import Holding, check_hold
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Page, Sink, Snapshot, Status, Top, hookimpl
from semantik_realtime.urls import mask_urls

from semantik_realtime_nats.errors import explain
from semantik_realtime_nats.freshness import Seen
from semantik_realtime_nats.marks import read_mark
from semantik_realtime_nats.settings import check_max_keys, load_nats_settings, plan_connect
from semantik_realtime_nats.snapshot import read_page, read_snapshot, read_tops
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects
from semantik_realtime_nats.subscriber import Subscriber
from semantik_realtime_nats.sweep import sweep_forever
from semantik_realtime_nats.thread import LoopThread
from semantik_realtime_nats.writer import Writer


class NatsBackend:
    """NATS 2.11 or newer, with JetStream. Implements `semantik_realtime.hookspecs.BackendSpec`.

    Raises:
        ConfigError: a setting is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        nats_settings = load_nats_settings()
        check_max_keys(settings.max_keys)
        self._settings = settings
        self._connect_options = plan_connect(settings.url, nats_settings)
        self._subjects = Subjects(settings, nats_settings)
        self._seen = Seen()
        self._writer = LoopThread(
            lambda: Writer(settings, self._subjects, self._connect),
            lambda writer: writer.close(),
        )
        self._subscriber: Subscriber | None = None
        """From `open` to `close`."""
        self._sweeping: asyncio.Task[None] | None = None
        """From `open` to `close`."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """On which `open` was called last."""

    # Writes: synchronous, from any thread.

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        if not drafts:
            return []
        return self._writer.run(lambda writer: writer.publish(drafts))

    @hookimpl
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        return self._writer.run(lambda writer: writer.claim(topic, job, token, owner))

    @hookimpl
    def delete(self, topic: str) -> bool:
        return self._writer.run(lambda writer: writer.delete(topic))

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        writer = self._writer.worker
        if writer is not None and writer.leases.renew_at_once(name, holder, seconds):
            return True
        return self._writer.run(lambda writer: writer.lease(name, holder, limit, seconds))

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        writer = self._writer.worker
        if writer is not None and writer.leases.release_at_once(name, holder):
            self._writer.post(writer.leases.begin_leaving)
            return True
        return self._writer.run(lambda writer: writer.release(name, holder))

    @hookimpl
    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        check_hold(holder, jobs, ended)
        return self._writer.run(lambda writer: writer.hold(holder, jobs, ended, seconds))

    @hookimpl
    def overdue(self, seconds: float) -> list[Holding]:
        return self._writer.run(lambda writer: writer.overdue(seconds))

    @hookimpl
    def close_writer(self) -> None:
        self._writer.close()

    # Reads: coroutines on one loop.

    @hookimpl
    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._subscriber is not None and self._loop is loop:
            return
        # What was opened on another loop (that of a test client) ended with that loop.
        self._subscriber, self._sweeping, self._loop = None, None, loop
        subscriber = Subscriber(self._subjects, self._connect, self._settings.timeout_seconds)
        self._subscriber = subscriber
        try:
            await subscriber.open()
        except BaseException:
            if self._subscriber is subscriber:
                self._subscriber = None
            raise
        if self._subscriber is not subscriber:
            # It was closed in the meantime, and nobody else would end these tasks.
            await subscriber.close()
            raise BackendUnavailable("the backend was closed")
        self._sweeping = asyncio.create_task(
            sweep_forever(subscriber.current_stream, self._subjects, secrets.token_hex(6)),
            name="semantik-realtime-sweep",
        )

    @hookimpl
    async def close(self) -> None:
        subscriber, self._subscriber = self._subscriber, None
        sweeping, self._sweeping = self._sweeping, None
        if sweeping is not None:
            await stop_tasks([sweeping])
        if subscriber is not None:
            await subscriber.close()

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        await self._opened().subscribe(topic, sink)

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        if self._subscriber is not None:
            await self._subscriber.unsubscribe(topic)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        async with self._reading() as stream:
            return await read_snapshot(
                stream, self._subjects, topic, after, history, self._settings
            )

    @hookimpl
    async def page(self, topic: str, after: int, limit: int) -> Page:
        async with self._reading() as stream:
            return await read_page(stream, self._subjects, topic, after, limit, self._settings)

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        async with self._reading() as stream:
            return await read_tops(stream, self._subjects, topics)

    @hookimpl
    async def status(self) -> Status:
        address = mask_urls(",".join(self._connect_options.urls))
        own: Stream | None = None
        try:
            stream = self._subscriber.stream if self._subscriber is not None else None
            if stream is None:
                stream = own = await self._connect()
            async with asyncio.timeout(self._settings.timeout_seconds):
                info = await stream.read_info()
        except Exception as error:
            return Status("nats", False, str(explain(error)), address=address)
        finally:
            if own is not None:
                await own.connection.close()
        config, state = info["config"], info["state"]
        server = (
            f"nats {stream.connection.server_info.get('version')}, JetStream, stream "
            f"{config['name']}: {state['messages']} messages, {state['bytes'] / 2**20:.1f} MB"
        )
        return Status(
            "nats", True, server, warnings_of(config), stream.clock_ahead_seconds, address
        )

    async def _connect(self) -> Stream:
        return await Stream.open(
            self._connect_options, self._subjects, self._settings.timeout_seconds, self._seen
        )

    def _opened(self) -> Subscriber:
        if self._subscriber is None:
            raise BackendUnavailable("the backend is not open")
        return self._subscriber

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[Stream]:
        """Yield the stream on the connection for reading, and limit the block to the timeout.

        Raises:
            BackendError: translated from whatever the block raises.
        """
        subscriber = self._opened()
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                yield await subscriber.current_stream()
        except Exception as error:
            raise explain(error) from error


def warnings_of(config: Mapping[str, Any]) -> list[str]:
    """Return the warnings for an operator that follow from the stream's configuration."""
    stream = f"the stream {config['name']}"
    mark = read_mark(config)
    if mark is not None and mark.closes:
        return [f"{stream} is closed for writing: {mark.reason}"]
    if config.get("storage") != "file":
        return [
            f"{stream} is in memory: a restart of the server loses all events; delete it, and "
            "this backend creates it on disk"
        ]
    if config.get("num_replicas", 1) == 1:
        return [
            f"{stream} has one replica: unless the server is set to sync_interval: always, a "
            "power failure loses what was acknowledged in the last two minutes; set that, or "
            "SEMANTIK_REALTIME_NATS_REPLICAS=3 before the first start"
        ]
    return []
