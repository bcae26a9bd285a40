"""The hooks of a backend, over one SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Receipt
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Sink, Snapshot, Status, Top, hookimpl
from semantik_realtime_sqlite.link import Link
from semantik_realtime_sqlite.log import Log, forget
from semantik_realtime_sqlite.look import read_snapshot, read_tops
from semantik_realtime_sqlite.settings import load_sqlite_settings, path_of
from semantik_realtime_sqlite.subscriber import Subscriber

SWEEP_SECONDS = 60.0
SWEEP_TOPICS = 100


class SqliteBackend:
    """SQLite 3.35 or newer, on a disk of this host."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._own = load_sqlite_settings()
        self._path = path_of(settings.url)
        self._writer = Link(self._path, self._own.synchronous, settings.timeout_seconds)
        self._feed: Subscriber | None = None
        self._sweep_at = 0.0

    # Writes: synchronous, from any thread.

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        if not drafts:
            return []
        with self._writer.writing() as db:
            now = time.time()
            logs: dict[str, Log] = {}
            receipts = []
            for draft in drafts:
                log = logs.get(draft.topic)
                if log is None:
                    log = logs[draft.topic] = Log(db, draft.topic, self._settings, now)
                receipts.append(log.append(draft))
            for log in logs.values():
                log.save()
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_SECONDS
                _sweep(db, now)
        return receipts

    @hookimpl
    def claim(self, topic: str, job: str, token: str) -> int:
        with self._writer.writing() as db:
            log = Log(db, topic, self._settings, time.time())
            attempt = log.claim(job, token)
            log.save()
        return attempt

    @hookimpl
    def delete(self, topic: str) -> bool:
        with self._writer.writing() as db:
            log = Log(db, topic, self._settings, time.time())
            was_known = log.delete()
            log.save()
        return was_known

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        with self._writer.writing() as db:
            now = time.time()
            db.execute("DELETE FROM leases WHERE name = ? AND ends_at <= ?", [name, now])
            [taken_by_others] = db.execute(
                "SELECT count(*) FROM leases WHERE name = ? AND holder != ?", [name, holder]
            ).fetchone()
            if taken_by_others >= limit:
                return False
            db.execute(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", [name, holder, now + seconds]
            )
        return True

    @hookimpl
    def release(self, name: str, holder: str) -> bool:
        with self._writer.writing() as db:
            removed = db.execute(
                "DELETE FROM leases WHERE name = ? AND holder = ?", [name, holder]
            ).rowcount
        return removed > 0

    @hookimpl
    def close_writer(self) -> None:
        self._writer.close()

    # Reads: coroutines on one loop.

    @hookimpl
    async def open(self) -> None:
        if self._feed is not None:
            if self._feed.loop is asyncio.get_running_loop():
                return
            # What belonged to another loop (a test client's) ended with it.
            self._feed.close()
        feed = Subscriber(self._path, self._own, self._settings.timeout_seconds)
        try:
            await feed.open()
        except BaseException:
            feed.close()
            raise
        self._feed = feed

    @hookimpl
    async def close(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()

    @hookimpl
    async def subscribe(self, topic: str, sink: Sink) -> None:
        await self._reader().subscribe(topic, sink)

    @hookimpl
    async def unsubscribe(self, topic: str) -> None:
        if self._feed is not None:
            self._feed.unsubscribe(topic)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        return await self._reader().ask(
            lambda db: read_snapshot(db, topic, after, history, time.time())
        )

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        return await self._reader().ask(lambda db: read_tops(db, topics, time.time()))

    @hookimpl
    async def status(self) -> Status:
        server = f"sqlite {sqlite3.sqlite_version}"
        try:
            await self.tops(["status:0"])
        except BackendError as error:
            return Status("sqlite", False, f"{server}: {error}")
        warnings = []
        if self._own.synchronous == "normal":
            warnings.append(
                "a power failure may take the newest events along; "
                "set SEMANTIK_REALTIME_SQLITE_SYNCHRONOUS=full to wait for the disk"
            )
        return Status("sqlite", True, server, warnings, 0.0)

    def _reader(self) -> Subscriber:
        if self._feed is None:
            raise BackendUnavailable("the backend is not open")
        return self._feed


def _sweep(db: sqlite3.Connection, now_seconds: float) -> None:
    """Remove what has expired and nobody wrote to again."""
    expired = db.execute(
        "SELECT topic FROM topics WHERE expires_at <= ? LIMIT ?", [now_seconds, SWEEP_TOPICS]
    ).fetchall()
    for (topic,) in expired:
        forget(db, topic)
    db.execute("DELETE FROM leases WHERE ends_at <= ?", [now_seconds])
