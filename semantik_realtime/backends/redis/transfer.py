"""Whole topics, read and stored for a migration to or from Redis and Valkey."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from semantik_realtime.backends.redis.address import read_address
from semantik_realtime.backends.redis.reader import Reader
from semantik_realtime.backends.redis.refusals import is_about_keys
from semantik_realtime.backends.redis.script import (
    EXPORT,
    HOLD,
    IMPORT,
    SET_MARK,
    mark_key,
    milliseconds,
)
from semantik_realtime.backends.redis.topology import Topology
from semantik_realtime.backends.redis.url_options import check_url, read_options
from semantik_realtime.config import Settings
from semantik_realtime.core.copying import (
    DELETED,
    CopiedEvent,
    CopiedJob,
    CopiedProducer,
    Mark,
    TopicCopy,
    find_takeover,
)
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.holding import HELD_KEEP_SECONDS
from semantik_realtime.core.readable import is_cursor
from semantik_realtime.core.topic import check_topic
from semantik_realtime.errors import BackendRefused, ConfigError, TopicError
from semantik_realtime.transfer import CopiedHolder, TopicHead
from semantik_realtime.urls import find_fault, mask_urls

SCAN_KEYS = 1000
"""Keys that the server looks at in one step of a search for topics."""
PART_EVENTS = 500
"""Events of one reply."""
JOBS_A_CALL = 500
HEAD_FIELDS = ("epoch", "offset", "chain", "owner", "deleted", "open")

_MARK = re.compile(r"([0-9a-f]{8}) (.*) ([0-9]{1,15})", re.DOTALL)
_ENTRY = re.compile(r"([0-9]{1,15}) (-?[0-9]{1,15}) (.*)", re.DOTALL)
_NUMBER = re.compile(r"([0-9]{1,15})(?: ([0-9]{1,15}))?")


class RedisTransfer:
    """See `semantik_realtime.transfer.Transfer`.

    Raises:
        ConfigError: redis-py cannot use the URL.
    """

    schemes = (
        *("redis", "rediss", "unix", "valkey", "valkeys", "redis+sentinel", "rediss+sentinel"),
        *("redis+cluster", "rediss+cluster"),
    )

    def __init__(self, settings: Settings) -> None:
        url = settings.url or ""
        address = read_address(url)
        if fault := find_fault(address.url):
            raise ConfigError(f"wrong URL of the redis backend: {fault}")
        own, _ = read_options(address.url)
        sentinel_url, _ = read_options(address.sentinel_url)
        check_url(own)
        self._settings = settings
        self._shown = mask_urls(url)
        self._topology = Topology(
            address._replace(url=own, sentinel_url=sentinel_url), settings.timeout_seconds
        )
        self._reader = Reader(self._topology, settings.timeout_seconds, retries=0)
        self._mark = mark_key(settings.prefix)
        self._due = f"{settings.prefix}:{{holders}}"

    @property
    def address(self) -> str:
        return self._shown

    async def open(self) -> None:
        await self._reader.execute(self._mark, "HGETALL", self._mark)

    async def close(self) -> None:
        await self._reader.close()

    async def topics(self) -> AsyncIterator[Sequence[str]]:
        begin, end = f"{self._settings.prefix}:{{", "}:meta"
        pattern = re.sub(r"([\[\]*?\\])", r"\\\1", begin) + "*" + end
        for node in (await self._topology.find_async()).nodes:
            cursor = 0
            while True:
                cursor, keys = await self._reader.scan(node, cursor, pattern, SCAN_KEYS)
                names = (
                    key.decode(errors="replace").removeprefix(begin).removesuffix(end)
                    for key in keys
                )
                if found := [name for name in names if _is_topic(name)]:
                    yield found
                if not cursor:
                    break

    async def heads(self, topics: Sequence[str]) -> dict[str, TopicHead]:
        metas = [self._keys(topic)[0] for topic in topics]
        replies = await self._reader.execute_all(
            [(meta, ("HMGET", meta, *HEAD_FIELDS)) for meta in metas]
        )
        heads = {}
        for topic, reply in zip(topics, replies, strict=True):
            if isinstance(reply, Exception) or not (place := _place_of(reply)):
                continue
            heads[topic] = TopicHead(f"{place} {reply[3]!r} {reply[5]!r}", place)
        return heads

    async def read(self, topic: str, after: int) -> TopicCopy | None:
        keys = self._keys(topic)
        while True:
            try:
                reply = await self._reader.run(EXPORT, keys)
            except BackendRefused as error:
                if error.__cause__ is None or not is_about_keys(error.__cause__):
                    raise
                return None
            copy = self._read_copy(topic, reply) if reply else None
            if copy is None or copy.deleted:
                return copy
            if after >= copy.cursor.offset:
                return copy
            copy.events = [one async for one in self._read_log(keys[1], after, copy.cursor.offset)]
            [epoch, *_] = await self._reader.execute(keys[0], "HMGET", keys[0], "epoch")
            if epoch == copy.cursor.epoch.encode():
                return copy
            # It expired or began again meanwhile, and the events are those of another log.

    async def put(
        self, copy: TopicCopy, place: str, *, whole: bool, run: str | None = None
    ) -> bool:
        keys = self._keys(copy.topic)
        if not (await self._topology.find_async()).is_cluster:
            keys.append(self._mark)
        elif run is not None and find_takeover(await self.read_mark(), run):
            # A script cannot read the mark there: it is in another slot.
            return False
        reply = await self._reader.run(
            IMPORT, keys, place, int(whole), run or "", *_arguments(copy)
        )
        return bool(reply == 1)

    async def holders(self) -> AsyncIterator[CopiedHolder]:
        found = await self._reader.execute(self._due, "ZRANGE", self._due, 0, -1, "WITHSCORES")
        seconds, microseconds = await self._reader.execute(self._due, "TIME")
        now = int(seconds) + int(microseconds) / 1e6
        pairs = found if found and isinstance(found[0], list | tuple) else _pairs(found)
        for name, ends_ms in pairs:
            key = f"{self._due}:{name.decode()}"
            jobs = await self._reader.execute(key, "HGETALL", key)
            if jobs:
                held = {job.decode(): record for job, record in jobs.items()}
                yield CopiedHolder(name.decode(), float(ends_ms) / 1000 - now, held)

    async def put_holder(self, holder: CopiedHolder) -> None:
        keys = [self._due, f"{self._due}:{holder.holder}"]
        jobs = list(holder.jobs.items())
        for begin in range(0, len(jobs), JOBS_A_CALL):
            flat = [part for job in jobs[begin : begin + JOBS_A_CALL] for part in job]
            times = (milliseconds(holder.seconds), round(HELD_KEEP_SECONDS * 1000))
            # Without the key of the mark, so that it is not refused.
            await self._reader.run(HOLD, keys, holder.holder, *times, 0, *flat)

    async def read_mark(self) -> Mark | None:
        found = await self._reader.execute(self._mark, "HGET", self._mark, "mark")
        try:
            return msgspec.json.decode(found, type=Mark) if found else None
        except msgspec.MsgspecError as error:
            raise BackendRefused(f"the key {self._mark} is no mark of a migration") from error

    async def set_mark(
        self,
        mark: Mark | None,
        *,
        is_closing_needed: bool = True,
        instead_of: Mark | UnsetType | None = UNSET,
    ) -> bool:
        layout = await self._topology.find_async()
        closes = mark is not None and mark.closes
        if closes and is_closing_needed and layout.is_cluster:
            raise BackendRefused(
                "a cluster cannot be closed in one step: stop everything that writes to it, and "
                "add --stopped"
            )
        condition = (0, "") if instead_of is UNSET else (1, _encode_mark(instead_of))
        reason = mark.reason if mark is not None and mark.closes else ""
        reply = await self._reader.run(
            SET_MARK, [self._mark], *condition, _encode_mark(mark), reason
        )
        return bool(reply == 1)

    async def _read_log(self, log: str, after: int, last: int) -> AsyncIterator[CopiedEvent]:
        begin, end = f"{after + 1}-0", f"{last}-0"
        while after < last:
            entries = await self._reader.execute(
                log, "XRANGE", log, begin, end, "COUNT", PART_EVENTS
            )
            for entry, fields in entries:
                if (event := _read_entry(entry, fields)) is not None:
                    yield event
            if len(entries) < PART_EVENTS:
                return
            begin = f"({entries[-1][0].decode()}"

    def _read_copy(self, topic: str, reply: Sequence[Any]) -> TopicCopy | None:
        epoch, offset, chain, owner, deleted, opened, ttl_ms, now, states, fence, seen = reply
        keep = ttl_ms / 1000 if ttl_ms > 0 else self._settings.retention_seconds
        if deleted:
            return TopicCopy(topic, Cursor("", 0, 0), deleted=True, keep_seconds=keep)
        cursor = Cursor(epoch.decode(errors="replace"), int(offset), int(chain))
        if not is_cursor(cursor):
            return None
        due_ms = int(opened) if opened.isdigit() else 0
        return TopicCopy(
            topic,
            cursor,
            owner.decode(errors="replace") or None,
            keep_seconds=keep,
            is_open=bool(opened),
            due_at=due_ms / 1000 or None,
            states={_text(key): event for key, event in _pairs(states)},
            jobs={_text(job): one for job, entry in _pairs(fence) if (one := _read_job(entry))},
            producers=_read_producers(seen, int(now)),
        )

    def _keys(self, topic: str) -> list[str]:
        base = f"{self._settings.prefix}:{{{topic}}}:"
        return [base + part for part in ("meta", "log", "state", "fence", "seen")]


def _encode_mark(mark: Mark | None) -> bytes:
    return b"" if mark is None else msgspec.json.encode(mark)


def _arguments(copy: TopicCopy) -> Iterator[str | bytes | int]:
    """Yield the arguments of import.lua after the first three."""
    if copy.deleted:
        meta: list[str] = ["deleted", "1"]
    else:
        cursor = copy.cursor
        meta = ["epoch", cursor.epoch, "offset", str(cursor.offset), "chain", str(cursor.chain)]
        meta += ["open", str(round(1000 * (copy.due_at or 0.0))) if copy.is_open else ""]
        if copy.owner is not None:
            meta += ["owner", copy.owner]
    yield milliseconds(copy.keep_seconds)
    counts = (len(meta), 3 * len(copy.events), len(copy.states), 2 * len(copy.states))
    yield from (*counts, 2 * len(copy.jobs))
    yield from meta
    for one in copy.events:
        yield f"{one.event.offset}-0"
        yield one.event.json
        yield f"{one.event.chain:08x} {one.producer} {one.number}"
    yield from copy.states
    for key, event in copy.states.items():
        yield key
        yield event
    for job, known in copy.jobs.items():
        yield job
        yield f"{known.attempt} {known.ended_at or -known.changed_at} {known.token}"
    for producer, last in copy.producers.items():
        yield from (producer, last.number, round(last.age_seconds))


def _read_entry(entry: bytes, fields: Mapping[bytes, bytes] | None) -> CopiedEvent | None:
    """Return an entry of a log; None if append.lua has not made it."""
    offset, _, rest = entry.partition(b"-")
    if rest != b"0" or not fields or set(fields) != {b"e", b"m"}:
        return None
    match = _MARK.fullmatch(fields[b"m"].decode(errors="replace"))
    if match is None:
        return None
    return CopiedEvent(Event(int(offset), int(match[1], 16), fields[b"e"]), match[2], int(match[3]))


def _read_job(entry: bytes) -> CopiedJob | None:
    match = _ENTRY.fullmatch(entry.decode(errors="replace"))
    if match is None:
        return None
    offset = int(match[2])
    return CopiedJob(int(match[1]), max(0, offset), abs(offset), match[3])


def _read_producers(seen: Sequence[bytes], now: int) -> dict[str, CopiedProducer]:
    found = []
    for producer, entry in _pairs(seen):
        match = _NUMBER.fullmatch(entry.decode(errors="replace"))
        if match is not None:
            age = float(max(0, now - int(match[2]))) if match[2] else 0.0
            found.append((_text(producer), CopiedProducer(int(match[1]), age)))
    return dict(sorted(found, key=lambda one: -one[1].age_seconds))


def _place_of(reply: Sequence[bytes | None]) -> str:
    epoch, offset, chain, _, deleted, _ = reply
    if deleted:
        return DELETED
    try:
        cursor = Cursor(_text(epoch or b""), int(offset or b"0"), int(chain or b"0"))
    except ValueError:
        return ""
    return str(cursor) if is_cursor(cursor) else ""


def _is_topic(name: str) -> bool:
    try:
        check_topic(name)
    except TopicError:
        return False
    return True


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
