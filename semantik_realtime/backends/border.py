"""The border between a backend and its readers: nothing crosses it that a client cannot read.

One damaged event, or what another program writes into a log, must not take its
topic along, nor the other topics of a process. In place of an event that cannot
be read its readers get a placeholder with the same offset
(`semantik_realtime.core.readable`); a state, a position or a live message that
cannot be read is left out. Each is counted, and the first of each topic is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.readable import (
    find_fault,
    find_state_fault,
    is_cursor,
    is_position,
    make_placeholder,
)
from semantik_realtime.hookspecs import Backend, Page, Sink, Snapshot, Top

logger = logging.getLogger(__name__)

MAX_LOGGED = 1000
"""Topics and kinds that are remembered, so that each is logged once."""

unreadable = {"event": 0, "state": 0, "position": 0, "message": 0}
"""What could not be read since the process began, by kind."""

# What was logged. Cleared when it is too much.
_logged: set[tuple[str, str]] = set()


def note(kind: str, topic: str, offset: int | str, fault: str) -> None:
    """Count what cannot be read, and log the first of each topic and kind.

    Args:
        kind: of `unreadable`.
        topic: where it is.
        offset: where in the topic, or the key of a state.
        fault: why it cannot be read.
    """
    unreadable[kind] += 1
    if (kind, topic) in _logged:
        return
    if len(_logged) >= MAX_LOGGED:
        _logged.clear()
    _logged.add((kind, topic))
    logger.warning(
        "border: unreadable %s left out topic=%s offset=%s fault=%s (logged once for each topic)",
        kind,
        topic,
        offset,
        fault,
    )


def check_events(topic: str, events: Sequence[Event]) -> Sequence[Event]:
    """Return ``events``, with a placeholder for each that cannot be read."""
    faults = {
        place: fault
        for place, event in enumerate(events)
        if (fault := find_fault(event.json, event.offset))
    }
    if not faults:
        return events
    checked = list(events)
    for place, fault in faults.items():
        note("event", topic, events[place].offset, fault)
        checked[place] = make_placeholder(events[place])
    return checked


def check_snapshot(topic: str, snapshot: Snapshot) -> Snapshot:
    """Return ``snapshot`` without what cannot be read."""
    if not _has_position(topic, snapshot.cursor):
        return Snapshot(None)
    events = check_events(topic, snapshot.events)
    faults = {
        key: fault for key, event in snapshot.states.items() if (fault := find_state_fault(event))
    }
    if events is snapshot.events and not faults:
        return snapshot
    for key, fault in faults.items():
        note("state", topic, key, fault)
    states = {key: event for key, event in snapshot.states.items() if key not in faults}
    return msgspec.structs.replace(snapshot, events=events, states=states)


def check_page(topic: str, page: Page) -> Page:
    """Return ``page`` without what cannot be read."""
    if not _has_position(topic, page.cursor):
        return Page(None)
    events = check_events(topic, page.events)
    return page if events is page.events else msgspec.structs.replace(page, events=events)


def check_tops(tops: dict[str, Top]) -> dict[str, Top]:
    """Return ``tops`` without those that cannot be read: these topics count as unknown."""
    return {topic: top for topic, top in tops.items() if _has_position(topic, top.cursor)}


def _has_position(topic: str, cursor: Cursor | None) -> bool:
    if cursor is None or is_cursor(cursor):
        return True
    note("position", topic, cursor.offset, "it is no position in a log")
    return False


class CheckedSink:
    """A sink that gets only what can be read; ``target`` gets it from here."""

    def __init__(self, target: Sink) -> None:
        self._target = target

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        place = prev.offset
        is_batch = is_cursor(prev)
        for event in events:
            is_next = event.offset > place and is_position(prev.epoch, event.offset, event.chain)
            is_batch = is_batch and is_next
            place = event.offset
        if not is_batch:
            # No append has made it. What is missing then shows at the next batch, or at the next
            # look at the tops.
            note("message", topic, prev.offset, "it is no batch of events")
        elif events:
            self._target.events(topic, prev, check_events(topic, events))

    def interrupted(self, topic: str) -> None:
        self._target.interrupted(topic)

    def gone(self, topic: str) -> None:
        self._target.gone(topic)


def check_reads(backend: Any) -> Backend:
    """Return ``backend``, whose reads and live events are checked from now on."""
    hooks = {**vars(backend)}
    subscribe, read, read_page, read_tops = (
        hooks[name] for name in ("subscribe", "snapshot", "page", "tops")
    )

    def subscribe_checked(topic: str, sink: Sink) -> Awaitable[None]:
        subscribed: Awaitable[None] = subscribe(topic, CheckedSink(sink))
        return subscribed

    async def snapshot(topic: str, after: Cursor | None, history: int) -> Snapshot:
        return check_snapshot(topic, await read(topic, after, history))

    async def page(topic: str, after: int, limit: int) -> Page:
        return check_page(topic, await read_page(topic, after, limit))

    async def tops(topics: Sequence[str]) -> dict[str, Top]:
        return check_tops(await read_tops(topics))

    checked: Any = SimpleNamespace(
        **{
            **hooks,
            "subscribe": subscribe_checked,
            "snapshot": snapshot,
            "page": page,
            "tops": tops,
        }
    )
    bound: Backend = checked
    return bound
