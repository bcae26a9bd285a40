"""Snapshots, pages and tops of topics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.limits import MAX_REPLAY
from semantik_realtime.core.resume import LogInfo, Reason, plan_sync, take_bytes
from semantik_realtime.hookspecs import Page, Snapshot, Top

from semantik_realtime_nats.clock import read_steady_clock
from semantik_realtime_nats.ledger import Gap
from semantik_realtime_nats.log import TopicLog, decode_message
from semantik_realtime_nats.records import LogMessage
from semantik_realtime_nats.stream import BATCH, Stream
from semantik_realtime_nats.subjects import Subjects
from semantik_realtime_nats.top_cache import LastMessage


async def read_snapshot(
    stream: Stream,
    subjects: Subjects,
    topic: str,
    after: Cursor | None,
    history: int,
    settings: Settings,
) -> Snapshot:
    """See `semantik_realtime.hookspecs.BackendSpec.snapshot`."""
    while True:
        log = await TopicLog.read(stream, subjects, topic)
        if log is None or await stream.is_past(log.ledger.alive_until):
            return Snapshot(None)
        if log.ledger.deleted or log.ledger.offset == 0:
            return Snapshot(None, deleted=log.ledger.deleted)
        # On a gap the log has changed too much since it was read: read it again.
        with contextlib.suppress(Gap):
            return await _read_sync(log, after, history, settings)


async def read_page(
    stream: Stream, subjects: Subjects, topic: str, after: int, limit: int, settings: Settings
) -> Page:
    """See `semantik_realtime.hookspecs.BackendSpec.page`."""
    while True:
        log = await TopicLog.read(stream, subjects, topic)
        if log is None or await stream.is_past(log.ledger.alive_until):
            return Page(None)
        ledger = log.ledger
        if ledger.deleted or ledger.offset == 0:
            return Page(None)
        start = max(after, ledger.first_offset(settings.retention_events) - 1)
        if start >= ledger.offset:
            return Page(ledger.cursor)
        with contextlib.suppress(Gap):
            messages = await log.read_after(start, limit, settings.max_read_bytes)
            rest = islice(events_after(messages, start), limit)
            events = take_bytes(rest, settings.max_read_bytes)
            return Page(ledger.cursor, events, events[-1].offset < ledger.offset)


async def read_tops(stream: Stream, subjects: Subjects, topics: Sequence[str]) -> dict[str, Top]:
    """See `semantik_realtime.hookspecs.BackendSpec.tops`."""
    tops = {}
    by_log = {subjects.log(topic): topic for topic in topics}
    logs = list(by_log)
    for start in range(0, len(logs), BATCH):
        part = logs[start : start + BATCH]
        for log, last in (await _read_ends(stream, subjects, by_log, part)).items():
            if not last.is_unknown and not await stream.is_past(last.expires_at):
                tops[by_log[log]] = Top(last.cursor, last.owner)
    return tops


async def _read_ends(
    stream: Stream, subjects: Subjects, topics: dict[str, str], logs: list[str]
) -> dict[str, LastMessage]:
    """Return the last message of each of at most `BATCH` logs that has one."""
    cache, now = stream.tops, read_steady_clock()
    known, unknown, first_seq = cache.split(logs, now)
    ends: dict[str, LastMessage] = {}
    if known:
        found, as_of_seq, foreign = await _read_since(stream, topics, known, first_seq)
        found |= await _read_before(stream, subjects, topics, foreign)
        if cache.note_news(known, found, as_of_seq):
            ends = {log: last for log in known if (last := cache.end_of(log)) is not None}
        else:
            unknown = logs
    if unknown:
        found, as_of_seq, foreign = await _read_since(stream, topics, unknown, 0)
        found |= await _read_before(stream, subjects, topics, foreign)
        cache.note(unknown, found, as_of_seq, now)
        ends |= found
    return ends


async def _read_before(
    stream: Stream, subjects: Subjects, topics: dict[str, str], logs: list[str]
) -> dict[str, LastMessage]:
    """Return the ends of logs to which another program has added a message."""
    ends: dict[str, LastMessage] = {}
    for log in logs:
        read = await TopicLog.read(stream, subjects, topics[log])
        if read is not None and read.ledger.offset:
            ledger = read.ledger
            ends[log] = LastMessage(ledger.cursor, ledger.owner, ledger.alive_until, ledger.deleted)
    return ends


async def _read_since(
    stream: Stream, topics: dict[str, str], logs: list[str], seq: int
) -> tuple[dict[str, LastMessage], int, list[str]]:
    """Return the ends that are as new as ``seq``, and as of which sequence of the stream.

    And the logs whose last message no writer has made.
    """
    found: dict[str, LastMessage] = {}
    foreign: list[str] = []
    as_of_seq = 0
    # In parts: the last messages may be large, and only their headers are kept.
    async for part, up_to_seq in stream.read_last_since(logs, seq):
        as_of_seq = up_to_seq
        for stored in part:
            last = decode_message(topics[stored.subject], stored)
            if last is None:
                foreign.append(stored.subject)
                continue
            found[stored.subject] = LastMessage(
                last.cursor, last.header.owner, last.expires_at, last.is_unknown
            )
    return found, as_of_seq, foreign


async def _read_sync(
    log: TopicLog, after: Cursor | None, history: int, settings: Settings
) -> Snapshot:
    """Return the events after ``after``, or the states and the reason for them.

    Raises:
        Gap: the log is outdated.
    """
    ledger, max_bytes = log.ledger, settings.max_read_bytes
    first = ledger.first_offset(settings.retention_events)
    info = LogInfo(ledger.epoch, ledger.offset, ledger.chain, first)
    # First with the chain that it claims: a cursor that fails even so needs no reading.
    reason = plan_sync(after, info, after.chain if after else None)
    if reason is None:
        assert after is not None
        tail = await log.read_after(after.offset, MAX_REPLAY, max_bytes)
        reason = plan_sync(after, info, chain_at(tail, after.offset))
        if reason is None:
            replay = take_bytes(events_after(tail, after.offset), max_bytes)
            if not replay or replay[-1].offset == ledger.offset:
                return Snapshot(ledger.cursor, ledger.owner, None, {}, replay)
            reason = Reason.TOO_FAR
    states = await log.read_states()
    newest: list[Event] = []
    if history:
        start = max(first, ledger.offset - history + 1) - 1
        messages = await log.read_newest(ledger.offset - start, max_bytes)
        newest = take_bytes(reversed([*events_after(messages, start)]), max_bytes)[::-1]
    return Snapshot(ledger.cursor, ledger.owner, reason, states, newest)


def events_after(messages: Iterable[LogMessage], offset: int) -> Iterator[Event]:
    """Yield the events after an offset."""
    return (event for message in messages for event in message.events() if event.offset > offset)


def chain_at(messages: Iterable[LogMessage], offset: int) -> int | None:
    """Return the chain after the event at an offset; None if the messages do not reach to it."""
    for message in messages:
        if message.header.offset == offset:
            return message.header.chain
        for event in message.events():
            if event.offset == offset:
                return event.chain
    return None
