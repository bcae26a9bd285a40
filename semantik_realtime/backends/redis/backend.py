"""The backend on Redis or Valkey.

A topic has five keys, all in one slot: ``{prefix}:{<topic>}:meta`` (its
position and owner), ``:log`` (a stream with the ids ``<offset>-0``), ``:state``
(the last event of each key), ``:fence`` (the attempt state of each job) and
``:seen`` (the last number of each producer). The Lua scripts change them
atomically.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs
from zlib import crc32

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from semantik_realtime.backends.border import note
from semantik_realtime.backends.redis.append import (
    DUPLICATE,
    append_arguments,
    append_header,
    new_epoch,
    read_receipts,
)
from semantik_realtime.backends.redis.canary import Canary
from semantik_realtime.backends.redis.holders import Holders
from semantik_realtime.backends.redis.read_pool import ReadPool
from semantik_realtime.backends.redis.refusals import ends_connection, explain
from semantik_realtime.backends.redis.replies import (
    is_of_another_type,
    read_page,
    read_snapshot,
    read_top,
)
from semantik_realtime.backends.redis.rights import PublishRight
from semantik_realtime.backends.redis.script import (
    APPEND,
    CLAIM,
    DELETE,
    LEASE,
    PAGE,
    READ,
    Script,
    Writer,
    check_url,
    milliseconds,
)
from semantik_realtime.backends.redis.subscriber import Subscriber
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Receipt
from semantik_realtime.core.holding import Holding
from semantik_realtime.core.limits import MAX_REPLAY
from semantik_realtime.core.retention import own_job
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Page, Sink, Snapshot, Status, Top, hookimpl
from semantik_realtime.urls import mask_text, mask_urls

DEFAULT_URL = "redis://localhost:6379/0"
READ_CONNECTIONS = 16
"""Most connections for reading, beside the subscriber's."""
SAFE_EVICTION = "noeviction"
"""The maxmemory-policy under which the server deletes no key that has not expired."""


class RedisBackend:
    """A `semantik_realtime.hookspecs.Backend` on Redis 6.2 or Valkey 8, or newer.

    Raises:
        ConfigError: redis-py cannot use the URL.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._append_header = append_header(settings)
        self._url = _canonical(settings.url or DEFAULT_URL)
        check_url(self._url)
        self._writer = Writer(self._url, settings.timeout_seconds)
        self._right = PublishRight(settings.prefix)
        self._holders = Holders(self._writer, settings.prefix)
        # For reading, from `open` to `close`, on the loop that called `open`.
        self._client: redis.asyncio.Redis | None = None
        self._pool: ReadPool | None = None
        self._subscriber: Subscriber | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # Writes: synchronous, from any thread.

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        by_topic: dict[str, list[int]] = {}
        digests = []
        header, epoch = self._append_header, new_epoch()
        for place, draft in enumerate(drafts):
            by_topic.setdefault(draft.topic, []).append(place)
            digests.append(crc32(draft.body))
        calls = [
            (
                self._keys(topic),
                append_arguments(
                    header,
                    epoch,
                    topic,
                    self._channel(topic),
                    [(drafts[place], digests[place]) for place in places],
                ),
            )
            for topic, places in by_topic.items()
        ]
        replies = self._writer.run_all(APPEND, calls)
        receipts: list[Receipt] = [DUPLICATE] * len(drafts)
        for places, reply in zip(by_topic.values(), self._right.read(replies), strict=True):
            read = read_receipts(reply.decode(), [digests[place] for place in places])
            for place, receipt in zip(places, read, strict=True):
                receipts[place] = receipt
        return receipts

    @hookimpl
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        attempt: int = self._writer.run(
            CLAIM,
            self._keys(topic),
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
        return bool(self._writer.run(DELETE, self._keys(topic), grace, self._channel(topic)))

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        return bool(
            self._writer.run(LEASE, [self._lease_key(name)], holder, limit, milliseconds(seconds))
        )

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        return bool(self._writer.command("ZREM", self._lease_key(name), holder))

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

    # Reads: coroutines on one loop.

    @hookimpl
    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._subscriber is not None and self._loop is loop:
            return
        # What was opened on another loop (a test client's, for example) ended with it.
        self._loop = loop
        timeout = self._settings.timeout_seconds
        pool = ReadPool.from_url(
            self._url,
            protocol=2,
            max_connections=READ_CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
        )
        self._client = redis.asyncio.Redis(connection_pool=pool)
        # The subscriber reads without a deadline; its canary finds a dead connection.
        kwargs = {**pool.connection_kwargs, "socket_timeout": None}
        del kwargs["redis_connect_func"]

        def connect() -> Any:
            return pool.connection_class(**kwargs)

        self._pool = pool
        pool.canary = Canary(self._writer, connect, self._channel, timeout)
        subscriber = Subscriber(connect, pool.canary, self._channel, timeout, pool.renew)
        self._subscriber = subscriber
        try:
            await subscriber.open()
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            raise explain(error) from error
        if self._subscriber is not subscriber:
            # It was closed in the meantime, and nobody else would end these tasks.
            await subscriber.close()
            raise BackendUnavailable("the backend was closed")

    @hookimpl
    async def close(self) -> None:
        subscriber, self._subscriber = self._subscriber, None
        client, self._client = self._client, None
        if subscriber is not None:
            await subscriber.close()
        if client is not None:
            await client.connection_pool.disconnect()

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        if self._subscriber is None:
            raise BackendUnavailable("the backend is not open")
        await self._subscriber.subscribe(topic, sink)

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        if self._subscriber is not None:
            await self._subscriber.unsubscribe(topic)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        asked = ("-", 0, "") if after is None else (after.epoch, after.offset, f"{after.chain:08x}")
        most = self._settings.max_read_bytes
        reply = await self._run(READ, self._keys(topic)[:3], *asked, history, MAX_REPLAY, most)
        return read_snapshot(reply)

    @hookimpl
    async def page(self, topic: str, after: int, limit: int) -> Page:
        most = self._settings.max_read_bytes
        return read_page(await self._run(PAGE, self._keys(topic)[:2], after, limit, most))

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        client: Any = self._reader()
        pipeline = client.pipeline(transaction=False)
        for topic in topics:
            pipeline.execute_command(
                "HMGET", self._keys(topic)[0], "epoch", "offset", "chain", "owner"
            )
        try:
            replies = await pipeline.execute(raise_on_error=False) if topics else []
        except (RedisError, OSError) as error:
            self._leave_wrong_server(error)
            raise explain(error) from error
        tops = {}
        for topic, reply in zip(topics, replies, strict=True):
            if isinstance(reply, Exception) and not is_of_another_type(reply):
                raise explain(reply) from reply
            try:
                top = read_top(reply)
            except (TypeError, ValueError) as error:
                note("position", topic, "unknown", str(error))
            else:
                if top is not None:
                    tops[topic] = top
        return tops

    @hookimpl
    async def status(self) -> Status:
        client = self._client or redis.asyncio.from_url(
            self._url,
            protocol=2,
            socket_timeout=self._settings.timeout_seconds,
            socket_connect_timeout=self._settings.timeout_seconds,
        )
        address = mask_urls(self._url)
        info: dict[str, Any] = {}
        ahead: float | None = None
        try:
            await client.ping()
            with contextlib.suppress(ResponseError):
                seconds, microseconds = await client.time()
                ahead = seconds + microseconds / 1e6 - time.time()
            # An ACL may forbid INFO; then its facts stay unknown.
            with contextlib.suppress(ResponseError):
                info = await client.info()
            warnings = [*await self._right.warnings(client), *_warnings(info)]
        except (RedisError, OSError) as error:
            return Status("redis", False, mask_text(str(error)), address=address)
        finally:
            if client is not self._client:
                await client.connection_pool.disconnect()
        name = str(info.get("server_name") or "redis")
        version = info.get("valkey_version") or info.get("redis_version") or "(version unknown)"
        return Status("redis", True, f"{name} {version}", warnings, ahead, address)

    async def _run(self, script: Script, keys: Sequence[str], *args: Any) -> Any:
        try:
            return await self._execute("EVALSHA", script.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._execute("EVAL", script.source, len(keys), *keys, *args)

    async def _execute(self, *command: Any) -> Any:
        try:
            reader: Any = self._reader()
            return await reader.execute_command(*command)
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            self._leave_wrong_server(error)
            raise explain(error) from error

    def _leave_wrong_server(self, error: Exception) -> None:
        """Resolve the address again before the next read, if this is not the server for it."""
        if self._pool is not None and ends_connection(error):
            self._pool.renew()

    def _reader(self) -> redis.asyncio.Redis:
        if self._client is None:
            raise BackendUnavailable("the backend is not open")
        return self._client

    def _keys(self, topic: str) -> list[str]:
        base = f"{self._settings.prefix}:{{{topic}}}:"
        return [base + part for part in ("meta", "log", "state", "fence", "seen")]

    def _channel(self, topic: str) -> str:
        return f"{self._settings.prefix}:{{{topic}}}"

    def _lease_key(self, name: str) -> str:
        return f"{self._settings.prefix}:lease:{{{name}}}"


def _canonical(url: str) -> str:
    # In Celery's configuration the values have the names of Python's ssl module.
    url = re.sub(
        r"(?<=[?&]ssl_cert_reqs=)CERT_(REQUIRED|OPTIONAL|NONE)\b", lambda it: it[1].lower(), url
    )
    # redis-py does not know the schemes of Valkey.
    for valkey, known in (("valkey://", "redis://"), ("valkeys://", "rediss://")):
        if url.startswith(valkey):
            url = known + url.removeprefix(valkey)
    if not url.startswith("rediss://"):
        return url
    # redis-py before 6 accepts a certificate of any host, and knows no "none" with a host name.
    address, hash_sign, fragment = url.partition("#")
    options = parse_qs(address.partition("?")[2])
    if "ssl_check_hostname" not in options and options.get("ssl_cert_reqs", [""])[0] != "none":
        address += ("&" if "?" in address else "?") + "ssl_check_hostname=true"
    return address + hash_sign + fragment


def _warnings(info: dict[str, Any]) -> list[str]:
    warnings = []
    policy = info.get("maxmemory_policy")
    if policy is not None and policy != SAFE_EVICTION:
        warnings.append(
            f"maxmemory-policy is {policy}: when its memory is full, the server may delete "
            f"topics; set maxmemory-policy {SAFE_EVICTION}"
        )
    # Without the right to INFO nothing is known, and nothing is warned of.
    if info.get("aof_enabled", True):
        return warnings
    if info.get("rdb_saves", True):
        warnings.append(
            "no append-only file: a crash loses the events since the last save; set appendonly yes"
        )
    else:
        warnings.append(
            "the server has not saved since its start: a crash loses all events; set appendonly yes"
        )
    return warnings
