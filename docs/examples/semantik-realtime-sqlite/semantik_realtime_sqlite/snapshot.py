"""Snapshots, pages and tops of topics, each read in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.resume import LogInfo, check_replay, plan_sync, take_bytes
from semantik_realtime.hookspecs import Page, Snapshot, Top


def read_snapshot(
    db: sqlite3.Connection,
    topic: str,
    after: Cursor | None,
    history: int,
    settings: Settings,
    now: float,
) -> Snapshot:
    """See `semantik_realtime.hookspecs.BackendSpec.snapshot`. ``now``: seconds since 1970."""
    top = _read_top(db, topic, now)
    if top is None:
        deletion = db.execute(
            "SELECT 1 FROM topics WHERE topic = ? AND expires_at > ? AND deleted",
            [topic, now],
        ).fetchone()
        return Snapshot(None, deleted=deletion is not None)
    [first] = db.execute("SELECT min(offset) FROM events WHERE topic = ?", [topic]).fetchone()
    stored = None
    if after is not None:
        stored = db.execute(
            "SELECT chain FROM events WHERE topic = ? AND offset = ?",
            [topic, after.offset],
        ).fetchone()
    cursor = top.cursor
    info = LogInfo(cursor.epoch, cursor.offset, cursor.chain, first)
    reason = plan_sync(after, info, stored[0] if stored else None)
    if reason is None:
        assert after is not None
        replay = take_bytes(_events_after(db, topic, after.offset), settings.max_read_bytes)
        reason = check_replay(after, replay, cursor)
        if reason is None:
            return Snapshot(cursor, top.owner, None, {}, replay)
    states = dict(db.execute("SELECT key, json FROM states WHERE topic = ?", [topic]).fetchall())
    newest = take_bytes(_newest_events(db, topic, history), settings.max_read_bytes)[::-1]
    return Snapshot(cursor, top.owner, reason, states, newest)


def read_page(
    db: sqlite3.Connection, topic: str, after: int, limit: int, settings: Settings, now: float
) -> Page:
    """See `semantik_realtime.hookspecs.BackendSpec.page`. ``now``: seconds since 1970."""
    top = _read_top(db, topic, now)
    if top is None:
        return Page(None)
    events = take_bytes(_events_after(db, topic, after, limit), settings.max_read_bytes)
    return Page(top.cursor, events, bool(events) and events[-1].offset < top.cursor.offset)


def read_tops(db: sqlite3.Connection, topics: Sequence[str], now: float) -> dict[str, Top]:
    """See `semantik_realtime.hookspecs.BackendSpec.tops`. ``now``: seconds since 1970."""
    tops = {topic: _read_top(db, topic, now) for topic in topics}
    return {topic: top for topic, top in tops.items() if top is not None}


def _read_top(db: sqlite3.Connection, topic: str, now: float) -> Top | None:
    row = db.execute(
        "SELECT epoch, offset, chain, owner FROM topics "
        "WHERE topic = ? AND expires_at > ? AND NOT deleted AND offset > 0",
        [topic, now],
    ).fetchone()
    return Top(Cursor(*row[:3]), row[3]) if row else None


def _events_after(
    db: sqlite3.Connection, topic: str, offset: int, limit: int = -1
) -> Iterator[Event]:
    """Yield the events after an offset, oldest first; a row is read when it is asked for."""
    rows = db.execute(
        "SELECT offset, chain, json FROM events WHERE topic = ? AND offset > ? "
        "ORDER BY offset LIMIT ?",
        [topic, offset, limit],
    )
    return (Event(*row) for row in rows)


def _newest_events(db: sqlite3.Connection, topic: str, count: int) -> Iterator[Event]:
    rows = db.execute(
        "SELECT offset, chain, json FROM events WHERE topic = ? ORDER BY offset DESC LIMIT ?",
        [topic, count],
    )
    return (Event(*row) for row in rows)
