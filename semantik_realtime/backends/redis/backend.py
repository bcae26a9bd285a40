"""The contract on Redis or Valkey.

All keys of a topic are in one slot: ``{prefix}:{<topic>}:meta``, ``:log`` (a
stream with the ids ``<offset>-0``), ``:state`` (key → its last event),
``:fence`` (job → standing), ``:seen`` (producer → last number).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from semantik_realtime.backends.redis.script import (
    APPEND,
    CLAIM,
    DELETE,
    LEASE,
    READ,
    Script,
    Writer,
    check_url,
    explain,
)
from semantik_realtime.backends.redis.subscriber import Subscriber
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Event, Outcome, Receipt, link
from semantik_realtime.core.limits import MAX_REPLAY
from semantik_realtime.core.resume import Reason
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Sink, Snapshot, Status, Top, hookimpl

DEFAULT_URL = "redis://localhost:6379/0"
READ_CONNECTIONS = 16
SAFE_EVICTION = frozenset({"noeviction"})

_encode = msgspec.json.Encoder().encode
_DUPLICATE = Receipt(Outcome.DUPLICATE)
_REFUSALS = {
    "d": _DUPLICATE,
    **{
        outcome.value: Receipt(outcome)
        for outcome in (Outcome.STALE, Outcome.CLOSED, Outcome.TOO_BIG, Outcome.TOO_MANY_KEYS)
    },
}
_APPENDED = Outcome.APPENDED


class RedisBackend:
    """Redis 6.2 or newer, Valkey 8 or newer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = _canonical(settings.url or DEFAULT_URL)
        check_url(self._url)
        self._writer = Writer(self._url, settings.timeout_seconds)
        self._client: redis.asyncio.Redis | None = None
        self._feed: Subscriber | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # Writes: synchronous, from any thread.

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        by_topic: dict[str, list[int]] = {}
        digests = []
        for place, draft in enumerate(drafts):
            by_topic.setdefault(draft.topic, []).append(place)
            digests.append(crc32(draft.body))
        calls = [
            self._append_call(topic, [(drafts[place], digests[place]) for place in places])
            for topic, places in by_topic.items()
        ]
        answers = self._writer.run_all(APPEND, calls)
        receipts: list[Receipt] = [_DUPLICATE] * len(drafts)
        for places, answer in zip(by_topic.values(), answers, strict=True):
            read = _receipts(answer.decode(), [digests[place] for place in places])
            for place, receipt in zip(places, read, strict=True):
                receipts[place] = receipt
        return receipts

    @hookimpl
    def claim(self, topic: str, job: str, token: str) -> int:
        attempt: int = self._writer.run(
            CLAIM,
            self._keys(topic),
            secrets.token_hex(5),
            job,
            token,
            _milliseconds(self._settings.retention_seconds),
            self._settings.max_keys,
        )
        return attempt

    @hookimpl
    def delete(self, topic: str) -> bool:
        grace = _milliseconds(self._settings.grace_seconds)
        return bool(self._writer.run(DELETE, self._keys(topic), grace, self._channel(topic)))

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        return bool(
            self._writer.run(LEASE, [self._lease_key(name)], holder, limit, _milliseconds(seconds))
        )

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        return bool(self._writer.command("ZREM", self._lease_key(name), holder))

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
        self._loop = loop
        timeout = self._settings.timeout_seconds
        pool = redis.asyncio.BlockingConnectionPool.from_url(
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
        # The feed waits for ever by design; its canary has the deadline.
        kwargs = {**pool.connection_kwargs, "socket_timeout": None}
        self._feed = Subscriber(
            lambda: pool.connection_class(**kwargs),
            lambda channel, text: self._execute("PUBLISH", channel, text),
            self._channel,
            timeout,
        )
        try:
            await self._feed.open()
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            raise explain(error) from error

    @hookimpl
    async def close(self) -> None:
        feed, self._feed = self._feed, None
        client, self._client = self._client, None
        if feed is not None:
            await feed.close()
        if client is not None:
            await client.connection_pool.disconnect()

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        if self._feed is None:
            raise BackendUnavailable("the backend is not open")
        await self._feed.subscribe(topic, sink)

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        if self._feed is not None:
            await self._feed.unsubscribe(topic)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        asked = ("-", 0, "") if after is None else (after.epoch, after.offset, f"{after.chain:08x}")
        answer = await self._run(READ, self._keys(topic)[:3], *asked, history, MAX_REPLAY)
        if len(answer) < 2:
            return Snapshot(None, deleted=bool(answer))
        epoch, offset, chain, owner, reason, flat_events, flat_states = answer
        events = []
        for body, mark in zip(flat_events[::2], flat_events[1::2], strict=True):
            entry, _, entry_chain = mark.partition(b" ")
            events.append(Event(int(entry.partition(b"-")[0]), int(entry_chain, 16), body))
        return Snapshot(
            Cursor(epoch.decode(), int(offset), int(chain, 16)),
            owner.decode() or None,
            Reason(reason.decode()) if reason else None,
            {
                key.decode(): event
                for key, event in zip(flat_states[::2], flat_states[1::2], strict=True)
            },
            events,
        )

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        client: Any = self._reader()
        pipeline = client.pipeline(transaction=False)
        for topic in topics:
            pipeline.execute_command(
                "HMGET", self._keys(topic)[0], "epoch", "offset", "chain", "owner"
            )
        try:
            answers = await pipeline.execute() if topics else []
        except (RedisError, OSError) as error:
            raise explain(error) from error
        tops = {}
        for topic, (epoch, offset, chain, owner) in zip(topics, answers, strict=True):
            if epoch is not None and offset not in (None, b"0"):
                cursor = Cursor(epoch.decode(), int(offset), int(chain))
                tops[topic] = Top(cursor, owner.decode() if owner is not None else None)
        return tops

    @hookimpl
    async def status(self) -> Status:
        client = self._client or redis.asyncio.from_url(
            self._url,
            protocol=2,
            socket_timeout=self._settings.timeout_seconds,
            socket_connect_timeout=self._settings.timeout_seconds,
        )
        info: dict[str, Any] = {}
        ahead: float | None = None
        try:
            await client.ping()
            with contextlib.suppress(ResponseError):
                seconds, microseconds = await client.time()
                ahead = seconds + microseconds / 1e6 - time.time()
            # An ACL may forbid INFO; what it would have told stays unknown.
            with contextlib.suppress(ResponseError):
                info = await client.info()
        except (RedisError, OSError) as error:
            return Status("redis", False, str(error))
        finally:
            if client is not self._client:
                await client.connection_pool.disconnect()
        name = str(info.get("server_name") or "redis")
        version = info.get("valkey_version") or info.get("redis_version") or "(version unknown)"
        return Status("redis", True, f"{name} {version}", _warnings(info), ahead)

    def _append_call(
        self, topic: str, drafts: Sequence[tuple[Draft, int]]
    ) -> tuple[Sequence[str], Sequence[Any]]:
        settings = self._settings
        header = {
            "epoch": secrets.token_hex(5),
            "owner": next((draft.owner for draft, _ in drafts if draft.owner), ""),
            "events": settings.retention_events,
            "ttl_ms": _milliseconds(settings.retention_seconds),
            "grace_ms": _milliseconds(settings.grace_seconds),
            "keys": settings.max_keys,
            "bytes": settings.max_event_bytes,
            "channel": self._channel(topic),
            "runs": _runs(topic, drafts),
        }
        return self._keys(topic), [_encode(header), *[draft.body[1:] for draft, _ in drafts]]

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
            raise explain(error) from error

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


def _runs(topic: str, drafts: Sequence[tuple[Draft, int]]) -> list[Any]:
    """What append.lua needs to know of drafts beside their bodies; what they share once."""
    runs: list[Any] = []
    shared, next_number = None, 0
    for draft, digest in drafts:
        known = shared
        shared = (
            draft.producer,
            draft.change,
            draft.key,
            draft.job or "",
            -1 if draft.attempt is None else draft.attempt,
            int(draft.terminal),
            int(topic == f"job:{draft.job}"),
        )
        if shared == known and draft.number == next_number:
            runs[-1][-1].append(digest)
        else:
            runs.append((*shared, draft.number, [digest]))
        next_number = draft.number + 1
    return runs


def _receipts(answer: str, digests: Sequence[int]) -> Iterator[Receipt]:
    """Read what append.lua gives."""
    before, *texts = answer.split(",")
    epoch, offset_text, chain_text = before.split(" ")
    offset, chain = int(offset_text), int(chain_text)
    for text, digest in zip(texts or ["a"] * len(digests), digests, strict=True):
        if text == "a":
            offset, chain = offset + 1, link(chain, digest)
            yield Receipt(_APPENDED, Cursor(epoch, offset, chain))
        elif text.startswith("d "):
            _, first, first_chain = text.split(" ")
            yield Receipt(Outcome.DUPLICATE, Cursor(epoch, int(first), int(first_chain, 16)))
        else:
            yield _REFUSALS[text]


def _canonical(url: str) -> str:
    # Celery's users write it as kombu wants it, with the names of Python's ssl module.
    url = re.sub(
        r"(?<=[?&]ssl_cert_reqs=)CERT_(REQUIRED|OPTIONAL|NONE)\b", lambda it: it[1].lower(), url
    )
    # redis-py knows Redis' names for the schemes only.
    for ours, theirs in (("valkey://", "redis://"), ("valkeys://", "rediss://")):
        if url.startswith(ours):
            return theirs + url.removeprefix(ours)
    return url


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _warnings(info: dict[str, Any]) -> list[str]:
    warnings = []
    policy = info.get("maxmemory_policy")
    if policy is not None and policy not in SAFE_EVICTION:
        warnings.append(
            f"maxmemory-policy is {policy}: under memory pressure the server may drop our keys; "
            "set maxmemory-policy noeviction"
        )
    # A server that does not let us see its INFO has said nothing.
    if info.get("aof_enabled", True):
        return warnings
    if info.get("rdb_saves", True):
        warnings.append(
            "no append-only file: a crash forgets the events since the last save; "
            "set appendonly yes"
        )
    else:
        warnings.append(
            "the server has never saved: a restart forgets all events; set appendonly yes"
        )
    return warnings
