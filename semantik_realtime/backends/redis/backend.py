"""The backend on Redis or Valkey.

A topic has five keys, all in one slot: ``{prefix}:{<topic>}:meta`` (its
position and owner), ``:log`` (a stream with the ids ``<offset>-0``), ``:state``
(the last event of each key), ``:fence`` (the attempt state of each job) and
``:seen`` (the last number of each producer). The Lua scripts change them
atomically. The sinks of an application have ``{prefix}:sinks`` and the keys that begin so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.backends.border import note
from semantik_realtime.backends.redis.address import read_address
from semantik_realtime.backends.redis.appender import Appender
from semantik_realtime.backends.redis.holders import Holders
from semantik_realtime.backends.redis.leases import Leases
from semantik_realtime.backends.redis.metas import read_metas
from semantik_realtime.backends.redis.reader import Reader
from semantik_realtime.backends.redis.refusals import explain_for, is_about_keys
from semantik_realtime.backends.redis.replies import read_page, read_snapshot, read_top
from semantik_realtime.backends.redis.rights import PublishRight, publish_command
from semantik_realtime.backends.redis.script import (
    CLAIM,
    DELETE,
    PAGE,
    READ,
    Script,
    mark_key,
    milliseconds,
)
from semantik_realtime.backends.redis.sinks import SinkQueues
from semantik_realtime.backends.redis.status import read_status
from semantik_realtime.backends.redis.subscriptions import Subscriptions
from semantik_realtime.backends.redis.topology import Topology
from semantik_realtime.backends.redis.url_options import (
    check_url,
    read_options,
    without_effect,
)
from semantik_realtime.backends.redis.writer import Writer
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Receipt
from semantik_realtime.core.holding import Holding
from semantik_realtime.core.limits import MAX_REPLAY
from semantik_realtime.core.retention import own_job
from semantik_realtime.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    ConfigError,
)
from semantik_realtime.hookspecs import Page, Sink, Snapshot, Status, Top, hookimpl
from semantik_realtime.urls import find_fault, mask_urls

logger = logging.getLogger(__name__)

DEFAULT_URL = "redis://localhost:6379/0"


class RedisBackend(SinkQueues):
    """A `semantik_realtime.hookspecs.Backend` on Redis 6.2 or Valkey 8, or newer.

    Raises:
        ConfigError: redis-py cannot use the URL.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = settings.url or DEFAULT_URL
        address = read_address(url)
        if fault := find_fault(address.url):
            raise ConfigError(f"wrong URL of the redis backend: {fault}")
        self._url, left_out = read_options(address.url)
        sentinel_url, _ = read_options(address.sentinel_url)
        check_url(self._url)
        if sentinel_url:
            check_url(sentinel_url)
        address = address._replace(url=self._url, sentinel_url=sentinel_url)
        self._left_out = left_out
        if left_out:
            logger.warning("redis: options of the URL without effect names=%s", ",".join(left_out))
        # Without what may be secret.
        self._shown_url = mask_urls(url)
        self._topology = Topology(address, settings.timeout_seconds)
        mark = mark_key(settings.prefix)
        self._writer = Writer(self._topology, settings.timeout_seconds, mark)
        self._right = PublishRight(settings.prefix)
        self._sinks_key = f"{settings.prefix}:sinks"
        self._appender = Appender(
            self._writer,
            self._topology,
            settings,
            self._keys,
            self._channel,
            self._right,
            self._sinks_key,
        )
        self._holders = Holders(self._writer, settings.prefix)
        self._leases = Leases(self._writer, self._lease_key)
        # For reading, from `open` to `close`, on the loop that called `open`.
        self._reader: Reader | None = None
        self._subscriptions: Subscriptions | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # Writes: synchronous, from any thread.

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        return self._appender.publish(drafts)

    @hookimpl
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        attempt: int = self._run(
            topic,
            CLAIM,
            secrets.token_hex(5),
            job,
            token,
            milliseconds(self._settings.retention_seconds),
            self._settings.max_keys,
            owner or "",
            milliseconds(self._settings.retention.open_seconds),
            own_job(topic) or "",
        )
        return attempt

    @hookimpl
    def delete(self, topic: str) -> bool:
        grace = milliseconds(self._settings.grace_seconds)
        layout = self._topology.find()
        args = (grace, self._channel(topic), int(layout.is_cluster))
        known, published = self._run(topic, DELETE, *args)
        self._right.check(bool(published), publish_command(layout))
        return bool(known)

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        return self._leases.lease(name, holder, limit, seconds)

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        return self._leases.release(name, holder)

    @hookimpl
    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        return self._holders.hold(holder, jobs, ended, seconds)

    @hookimpl
    def overdue(self, seconds: float) -> list[Holding]:
        return self._holders.overdue(seconds)

    @hookimpl
    def close_writer(self) -> None:
        self._writer.close()
        self._writer.abort()
        self._leases.forget()

    # Reads: coroutines on one loop.

    @hookimpl
    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._subscriptions is not None and self._loop is loop:
            return
        # What was opened on another loop (a test client's, for example) ended with it.
        self._loop = loop
        timeout = self._settings.timeout_seconds
        self._reader = Reader(self._topology, timeout)
        subscriptions = Subscriptions(
            self._topology, self._reader, self._writer, self._channel, timeout
        )
        self._subscriptions = subscriptions
        try:
            await subscriptions.open()
        except BackendError:
            await self.close()
            raise
        if self._subscriptions is not subscriptions:
            # It was closed in the meantime, and nobody else would end these tasks.
            await subscriptions.close()
            raise BackendUnavailable("the backend was closed")

    @hookimpl
    async def close(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, None
        reader, self._reader = self._reader, None
        if subscriptions is not None:
            await subscriptions.close()
        if reader is not None:
            await reader.close()

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        if self._subscriptions is None:
            raise BackendUnavailable("the backend is not open")
        await self._subscriptions.subscribe(topic, sink)

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        if self._subscriptions is not None:
            await self._subscriptions.unsubscribe(topic)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        asked = ("-", 0, "") if after is None else (after.epoch, after.offset, f"{after.chain:08x}")
        most = self._settings.max_read_bytes
        args = (*asked, history, MAX_REPLAY, most)
        try:
            reply = await self._reading().run(READ, self._keys(topic)[:3], *args)
        except BackendRefused as error:
            await self._check_unreadable(topic, error)
            return Snapshot(None)
        return read_snapshot(reply)

    @hookimpl
    async def page(self, topic: str, after: int, limit: int) -> Page:
        most = self._settings.max_read_bytes
        keys = self._keys(topic)[:2]
        try:
            return read_page(await self._reading().run(PAGE, keys, after, limit, most))
        except BackendRefused as error:
            await self._check_unreadable(topic, error)
            return Page(None)

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        metas = [self._keys(topic)[0] for topic in topics]
        replies = await read_metas(self._topology, self._reading(), metas)
        tops = {}
        for topic, reply in zip(topics, replies, strict=True):
            try:
                if isinstance(reply, BackendRefused):
                    raise ValueError(reply)
                top = read_top(reply)
            except (TypeError, ValueError) as error:
                note("position", topic, "unknown", str(error))
            else:
                if top is not None:
                    tops[topic] = top
        return tops

    @hookimpl
    async def status(self) -> Status:
        reader = self._reader or Reader(self._topology, self._settings.timeout_seconds, retries=0)
        try:
            status = await read_status(self._topology, reader, self._shown_url, self._right)
            closed = await self._read_closed(reader) if status.reachable else []
        finally:
            if reader is not self._reader:
                await reader.close()
        if self._left_out:
            closed.append(without_effect(self._left_out))
        return msgspec.structs.replace(status, warnings=[*status.warnings, *closed])

    async def _read_closed(self, reader: Reader) -> list[str]:
        """Return the warning that a migration has closed the server, if one has."""
        mark = mark_key(self._settings.prefix)
        with contextlib.suppress(BackendError):
            [reason] = await reader.execute(mark, "HMGET", mark, "closed")
            if reason is not None:
                return [f"the server is closed for writing: {reason.decode(errors='replace')}"]
        return []

    def _run(self, topic: str, script: Script, *args: Any) -> Any:
        """Run a script that writes to one topic.

        Raises:
            TopicRefused: the server refuses this topic.
            BackendError: as `Writer.run_all`.
        """
        [reply] = self._writer.run_each(script, [(self._keys(topic), args)])
        if isinstance(reply, Exception):
            raise explain_for(topic, reply)
        return reply

    async def _check_unreadable(self, topic: str, error: BackendRefused) -> None:
        """Return if the server refuses to read this topic and answers for another one.

        Raises:
            BackendRefused: ``error``; it concerns all topics.
        """
        if error.__cause__ is None or not is_about_keys(error.__cause__):
            raise error
        await self._reading().run(READ, self._keys("probe:0")[:3], "-", 0, "", 0, 1, 1)
        note("position", topic, "unknown", str(error))

    def _reading(self) -> Reader:
        if self._reader is None:
            raise BackendUnavailable("the backend is not open")
        return self._reader

    def _keys(self, topic: str) -> list[str]:
        base = f"{self._settings.prefix}:{{{topic}}}:"
        return [base + part for part in ("meta", "log", "state", "fence", "seen")]

    def _channel(self, topic: str) -> str:
        return f"{self._settings.prefix}:{{{topic}}}"

    def _lease_key(self, name: str) -> str:
        return f"{self._settings.prefix}:lease:{{{name}}}"
