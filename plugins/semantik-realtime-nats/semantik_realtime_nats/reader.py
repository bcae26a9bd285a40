"""Looking at topics."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.resume import LogInfo, plan_sync
from semantik_realtime.hookspecs import Snapshot, Top

from semantik_realtime_nats.ledger import Gap, Ledger, Message
from semantik_realtime_nats.link import Link
from semantik_realtime_nats.log import (
    Reading,
    catch_up,
    decode,
    offset_of,
    read_messages,
    read_topic,
)
from semantik_realtime_nats.settings import Names

TOPS_AT_ONCE = 100


async def read_snapshot(
    link: Link, names: Names, topic: str, after: Cursor | None, history: int, retention_events: int
) -> Snapshot:
    """See `semantik_realtime.hookspecs.BackendSpec.snapshot`."""
    while True:
        reading = await read_topic(link, names, topic)
        if reading is None or link.now() >= reading.ledger.alive_until:
            return Snapshot(None)
        if reading.ledger.deleted or reading.ledger.offset == 0:
            return Snapshot(None, deleted=reading.ledger.deleted)
        with contextlib.suppress(Gap):
            return await _look(link, names, topic, reading, after, history, retention_events)


async def read_tops(link: Link, names: Names, topics: Sequence[str]) -> dict[str, Top]:
    """See `semantik_realtime.hookspecs.BackendSpec.tops`."""
    tops = {}
    by_log = {names.log(topic): topic for topic in topics}
    logs = list(by_log)
    for start in range(0, len(logs), TOPS_AT_ONCE):
        for log, stored in (await link.last(logs[start : start + TOPS_AT_ONCE])).items():
            last = decode(stored)
            if not last.is_dead and not last.expired(link.now()):
                tops[by_log[log]] = Top(last.cursor, last.head.owner)
    return tops


async def _look(
    link: Link,
    names: Names,
    topic: str,
    reading: Reading,
    after: Cursor | None,
    history: int,
    retention_events: int,
) -> Snapshot:
    ledger = reading.ledger
    first = ledger.first(retention_events)
    info = LogInfo(ledger.epoch, ledger.offset, ledger.chain, first)
    # A cursor that fails whatever its chain needs no reading.
    reason = plan_sync(after, info, after.chain if after else None)
    if reason is None:
        assert after is not None
        tail = await _tail(link, names, topic, reading, after.offset)
        reason = plan_sync(after, info, _chain_at(tail, after.offset))
        if reason is None:
            events = _events(tail, after.offset)
            return Snapshot(ledger.cursor, ledger.owner, None, {}, events)
    states = await _read_states(link, names, topic, reading)
    newest: list[Event] = []
    if history:
        start = max(first, ledger.offset - history + 1) - 1
        tail = await _tail(link, names, topic, reading, start)
        newest = _events(tail, start)
    return Snapshot(ledger.cursor, ledger.owner, reason, states, newest)


async def _read_states(link: Link, names: Names, topic: str, reading: Reading) -> dict[str, bytes]:
    """The last event with a state of each key, at the end of the ledger; that may move on.

    Raises:
        Gap: begin again.
    """
    ledger = reading.ledger
    subjects = {key: names.state(topic, key) for key in ledger.keys if key not in ledger.changed}
    found = await link.last(list(subjects.values()))
    settled = {key: found[name].data for key, name in subjects.items() if name in found}
    if not _are_whole(ledger, settled):
        # Somebody settled meanwhile: then the log has what is newer.
        reading.messages += await catch_up(link, names, topic, ledger)
        if not _are_whole(ledger, settled):
            raise Gap("states and log do not fit")
    return {key: ledger.changed.get(key) or settled[key] for key in ledger.keys}


def _are_whole(ledger: Ledger, settled: dict[str, bytes]) -> bool:
    return all(
        key in ledger.changed or (key in settled and offset_of(settled[key]) == offset)
        for key, offset in ledger.keys.items()
    )


async def _tail(
    link: Link, names: Names, topic: str, reading: Reading, after: int
) -> list[Message]:
    """Messages with all events after an offset that are stored.

    Raises:
        Gap: the log began anew.
    """
    if reading.messages and reading.messages[0].head.offset <= after:
        return reading.messages
    ledger = reading.ledger
    messages = await read_messages(link, names, topic, ledger.page(after))
    if not any(message.seq == ledger.seq for message in messages):
        raise Gap("the end of the log is gone")
    return [message for message in messages if message.seq <= ledger.seq]


def _events(messages: list[Message], after: int) -> list[Event]:
    return [event for message in messages for event in message.events() if event.offset > after]


def _chain_at(messages: list[Message], offset: int) -> int | None:
    """The chain after an offset, if these messages know it."""
    for message in messages:
        if message.head.offset == offset:
            return message.head.chain
        for event in message.events():
            if event.offset == offset:
                return event.chain
    return None
