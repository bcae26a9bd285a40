"""The hooks of a backend on one SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping, Sequence

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Receipt
from semantik_realtime.core.holding import Holding
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Page, Sink, Snapshot, Status, Top, hookimpl
from semantik_realtime_sqlite.database import Database
from semantik_realtime_sqlite.holders import give_overdue, hold, sweep_holders
from semantik_realtime_sqlite.log import TopicLog, delete_rows
from semantik_realtime_sqlite.settings import load_sqlite_settings, path_of
from semantik_realtime_sqlite.snapshot import read_page, read_snapshot, read_tops
from semantik_realtime_sqlite.subscriber import Subscriber

SWEEP_SECONDS = 60.0
"""Least time between two sweeps of a process."""
SWEEP_TOPICS = 100
"""Most topics that a sweep removes: it is part of a `publish`, which must not take long."""


class SqliteBackend:
    """SQLite 3.35 or newer, on a disk of this host.

    Implements `semantik_realtime.hookspecs.BackendSpec`.

    Raises:
        ConfigError: a setting is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sqlite_settings = load_sqlite_settings()
        self._path = path_of(settings.url)
        self._writer = Database(
            self._path, self._sqlite_settings.synchronous, settings.timeout_seconds
        )
        self._subscriber: Subscriber | None = None
        """From `open` to `close`."""
        self._sweep_at = 0.0
        """When the next `publish` sweeps: seconds since 1970. Changed in a transaction only."""

    # Writes: synchronous, from any thread.

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        if not drafts:
            return []
        with self._writer.write() as db:
            now = time.time()
            logs: dict[str, TopicLog] = {}
            receipts = []
            for draft in drafts:
                log = logs.get(draft.topic)
                if log is None:
                    log = logs[draft.topic] = TopicLog(db, draft.topic, self._settings, now)
                receipts.append(log.append(draft))
            for log in logs.values():
                log.save()
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_SECONDS
                _sweep(db, now)
        return receipts

    @hookimpl
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        with self._writer.write() as db:
            log = TopicLog(db, topic, self._settings, time.time())
            attempt = log.claim(job, token, owner)
            log.save()
        return attempt

    @hookimpl
    def delete(self, topic: str) -> bool:
        with self._writer.write() as db:
            log = TopicLog(db, topic, self._settings, time.time())
            was_known = log.delete()
            log.save()
        return was_known

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        with self._writer.write() as db:
            now = time.time()
            db.execute("DELETE FROM leases WHERE name = ? AND ends_at <= ?", [name, now])
            [held_by_others] = db.execute(
                "SELECT count(*) FROM leases WHERE name = ? AND holder != ?", [name, holder]
            ).fetchone()
            if held_by_others >= limit:
                return False
            db.execute(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", [name, holder, now + seconds]
            )
        return True

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        with self._writer.write() as db:
            removed = db.execute(
                "DELETE FROM leases WHERE name = ? AND holder = ?", [name, holder]
            ).rowcount
        return removed > 0

    @hookimpl
    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        with self._writer.write() as db:
            return hold(db, holder, jobs, ended, seconds, time.time())

    @hookimpl
    def overdue(self, seconds: float) -> list[Holding]:
        with self._writer.write() as db:
            return give_overdue(db, seconds, time.time())

    @hookimpl
    def close_writer(self) -> None:
        self._writer.close()

    # Reads: coroutines on one loop.

    @hookimpl
    async def open(self) -> None:
        if self._subscriber is not None:
            if self._subscriber.loop is asyncio.get_running_loop():
                return
            # What was opened on another loop (that of a test client) ended with that loop.
            self._subscriber.close()
        subscriber = Subscriber(self._path, self._sqlite_settings, self._settings.timeout_seconds)
        try:
            await subscriber.open()
        except BaseException:
            subscriber.close()
            raise
        self._subscriber = subscriber

    @hookimpl
    async def close(self) -> None:
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            subscriber.close()

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        await self._opened().subscribe(topic, sink)

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        if self._subscriber is not None:
            self._subscriber.unsubscribe(topic)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        return await self._opened().read(
            lambda db: read_snapshot(db, topic, after, history, self._settings, time.time())
        )

    @hookimpl
    async def page(self, topic: str, after: int, limit: int) -> Page:
        return await self._opened().read(
            lambda db: read_page(db, topic, after, limit, self._settings, time.time())
        )

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        return await self._opened().read(lambda db: read_tops(db, topics, time.time()))

    @hookimpl
    async def status(self) -> Status:
        server = f"sqlite {sqlite3.sqlite_version}"
        try:
            await self.tops(["status:0"])
        except BackendError as error:
            return Status("sqlite", False, f"{server}: {error}")
        warnings = []
        if self._sqlite_settings.synchronous == "normal":
            warnings.append(
                "a power failure may lose the newest events; "
                "set SEMANTIK_REALTIME_SQLITE_SYNCHRONOUS=full to wait for the disk"
            )
        return Status("sqlite", True, server, warnings, 0.0)

    def _opened(self) -> Subscriber:
        if self._subscriber is None:
            raise BackendUnavailable("the backend is not open")
        return self._subscriber


def _sweep(db: sqlite3.Connection, now: float) -> None:
    """Remove topics, leases and holders that have expired."""
    expired = db.execute(
        "SELECT topic FROM topics WHERE expires_at <= ? LIMIT ?", [now, SWEEP_TOPICS]
    ).fetchall()
    for (topic,) in expired:
        delete_rows(db, topic)
    db.execute("DELETE FROM leases WHERE ends_at <= ?", [now])
    sweep_holders(db, now)
