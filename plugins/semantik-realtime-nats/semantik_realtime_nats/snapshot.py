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

from semantik_realtime_nats.ledger import Gap
from semantik_realtime_nats.log import TopicLog, decode_message
from semantik_realtime_nats.records import LogMessage
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects


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
        if log is None or stream.now() >= log.ledger.alive_until:
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
        if log is None or stream.now() >= log.ledger.alive_until:
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
    # In parts: the last messages may be large, and only their headers are kept.
    foreign: list[str] = []
    async for part in stream.read_last_parts(list(by_log)):
        for stored in part:
            topic = by_log[stored.subject]
            last = decode_message(topic, stored)
            if last is None:
                foreign.append(topic)
            elif not last.is_unknown and not last.is_expired(stream.now()):
                tops[topic] = Top(last.cursor, last.header.owner)
    for topic in foreign:
        log = await TopicLog.read(stream, subjects, topic)
        if log is not None and log.ledger.offset and not log.ledger.deleted:
            tops[topic] = Top(log.ledger.cursor, log.ledger.owner)
    return tops


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
