"""What readers ask of the file, each within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.resume import LogInfo, plan_sync
from semantik_realtime.hookspecs import Snapshot, Top


def read_snapshot(
    db: sqlite3.Connection, topic: str, after: Cursor | None, history: int, now_seconds: float
) -> Snapshot:
    """The events after a cursor, or the states with the reason."""
    top = _top(db, topic, now_seconds)
    if top is None:
        deletion = db.execute(
            "SELECT 1 FROM topics WHERE topic = ? AND expires_at > ? AND deleted",
            [topic, now_seconds],
        ).fetchone()
        return Snapshot(None, deleted=deletion is not None)
    [first] = db.execute("SELECT min(offset) FROM events WHERE topic = ?", [topic]).fetchone()
    there = None
    if after is not None:
        there = db.execute(
            "SELECT chain FROM events WHERE topic = ? AND offset = ?",
            [topic, after.offset],
        ).fetchone()
    cursor = top.cursor
    info = LogInfo(cursor.epoch, cursor.offset, cursor.chain, first)
    reason = plan_sync(after, info, there[0] if there else None)
    if reason is None:
        assert after is not None
        return Snapshot(cursor, top.owner, None, {}, _events_after(db, topic, after.offset))
    states = dict(db.execute("SELECT key, json FROM states WHERE topic = ?", [topic]).fetchall())
    newest = _events_after(db, topic, cursor.offset - history)
    return Snapshot(cursor, top.owner, reason, states, newest)


def read_tops(db: sqlite3.Connection, topics: Sequence[str], now_seconds: float) -> dict[str, Top]:
    """Where each topic ends."""
    tops = {topic: _top(db, topic, now_seconds) for topic in topics}
    return {topic: top for topic, top in tops.items() if top is not None}


def _top(db: sqlite3.Connection, topic: str, now_seconds: float) -> Top | None:
    row = db.execute(
        "SELECT epoch, offset, chain, owner FROM topics "
        "WHERE topic = ? AND expires_at > ? AND NOT deleted AND offset > 0",
        [topic, now_seconds],
    ).fetchone()
    return Top(Cursor(*row[:3]), row[3]) if row else None


def _events_after(db: sqlite3.Connection, topic: str, offset: int) -> list[Event]:
    rows = db.execute(
        "SELECT offset, chain, json FROM events WHERE topic = ? AND offset > ? ORDER BY offset",
        [topic, offset],
    )
    return [Event(*row) for row in rows]
