"""The jobs that worker processes hold, within a write transaction."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping, Sequence

from semantik_realtime.core.holding import (
    HELD_KEEP_SECONDS,
    Holding,
    check_hold,
    given_name,
    worker_of,
)
from semantik_realtime.core.limits import MAX_GIVEN_HOLDERS, MAX_GIVEN_JOBS


def hold(
    db: sqlite3.Connection,
    holder: str,
    jobs: Mapping[str, bytes],
    ended: Sequence[str],
    seconds: float,
    now: float,
) -> bool:
    """See `semantik_realtime.hookspecs.Backend.hold`. ``now``: seconds since 1970."""
    check_hold(holder, jobs, ended)
    known = db.execute("SELECT 1 FROM holders WHERE holder = ?", [holder]).fetchone() is not None
    db.executemany(
        "DELETE FROM held_jobs WHERE holder = ? AND job = ?", [(holder, job) for job in ended]
    )
    db.executemany(
        "INSERT OR REPLACE INTO held_jobs VALUES (?, ?, ?)",
        [(holder, job, record) for job, record in jobs.items()],
    )
    has_jobs = db.execute("SELECT 1 FROM held_jobs WHERE holder = ? LIMIT 1", [holder]).fetchone()
    if has_jobs:
        db.execute("INSERT OR REPLACE INTO holders VALUES (?, ?)", [holder, now + seconds])
    elif known:
        db.execute("DELETE FROM holders WHERE holder = ?", [holder])
    return known


def give_overdue(db: sqlite3.Connection, seconds: float, now: float) -> list[Holding]:
    """See `semantik_realtime.hookspecs.Backend.overdue`. ``now``: seconds since 1970."""
    found = db.execute(
        "SELECT holder FROM holders WHERE ends_at <= ? ORDER BY ends_at, holder LIMIT ?",
        [now, MAX_GIVEN_HOLDERS],
    ).fetchall()
    token = secrets.token_hex(4)
    given: list[Holding] = []
    count = 0
    for (holder,) in found:
        if count >= MAX_GIVEN_JOBS:
            break
        jobs = dict(
            db.execute("SELECT job, record FROM held_jobs WHERE holder = ?", [holder]).fetchall()
        )
        name = given_name(holder, token)
        db.execute("UPDATE held_jobs SET holder = ? WHERE holder = ?", [name, holder])
        db.execute(
            "UPDATE holders SET holder = ?, ends_at = ? WHERE holder = ?",
            [name, now + seconds, holder],
        )
        given.append(Holding(name, worker_of(holder), jobs))
        count += len(jobs)
    return given


def sweep_holders(db: sqlite3.Connection, now: float) -> None:
    """Remove what nobody has asked for since its deadline."""
    before = now - HELD_KEEP_SECONDS
    db.execute(
        "DELETE FROM held_jobs WHERE holder IN (SELECT holder FROM holders WHERE ends_at <= ?)",
        [before],
    )
    db.execute("DELETE FROM holders WHERE ends_at <= ?", [before])
