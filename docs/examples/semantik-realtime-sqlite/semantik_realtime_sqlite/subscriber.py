"""Live events: a thread that looks for news, and the sinks on the loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from semantik_realtime.core.event import Event
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Sink
from semantik_realtime_sqlite.link import Link
from semantik_realtime_sqlite.settings import SqliteSettings

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Row = tuple[str, str, int, int, bytes | None]
"""topic, epoch, offset, chain, event; no event: the topic was deleted."""


class Subscriber:
    """Everything that is read, for the loop that made it.

    One thread reads the file: it answers questions, and looks for news at
    fixed times, so that the loop hears of nothing while there is none. Sinks
    are called on the loop.
    """

    def __init__(self, path: Path, own: SqliteSettings, timeout_seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self._poll_seconds = own.poll_seconds
        self._timeout_seconds = timeout_seconds
        self._sinks: dict[str, Sink] = {}
        self._watched: set[str] = set()
        """Topics whose news are read: those of the sinks, as the thread knows them."""
        self._link = Link(path, own.synchronous, timeout_seconds, self._prepare)
        self._questions: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        self._seen = 0
        """The key of the last event that was looked at."""
        self._version: int | None = None
        """SQLite's count of commits by others, as this connection saw it last; None: a new one."""
        self._failing = False
        self._thread = threading.Thread(
            target=self._run, name="semantik-realtime-sqlite", daemon=True
        )

    async def open(self) -> None:
        """Begin to read.

        Raises:
            BackendUnavailable, BackendRefused: the file cannot be read; `close` all the same.
        """
        self._thread.start()
        await self.ask(self._look)

    def close(self) -> None:
        """End the thread and its connection; sinks hear nothing any more. Waits for nothing."""
        self._sinks.clear()
        self._questions.put(None)

    async def ask(self, look: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """The answer of ``look``, which is given one moment of the file.

        Raises:
            BackendUnavailable, BackendRefused: there is none.
        """
        future: Future[Answer] = Future()
        self._questions.put((look, future))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise BackendUnavailable(f"no answer in {self._timeout_seconds:g} s") from None

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """Feed ``sink`` with what is committed from now on.

        Raises:
            BackendUnavailable, BackendRefused: it is not fed.
        """
        self._sinks[topic] = sink
        try:
            await self.ask(lambda db: self._begin_to_watch(db, topic))
        except BaseException:
            if self._sinks.get(topic) is sink:
                self.unsubscribe(topic)
            raise

    def unsubscribe(self, topic: str) -> None:
        """Stop at once."""
        self._sinks.pop(topic, None)
        self._watched.discard(topic)

    # In the thread.

    def _run(self) -> None:
        due = time.monotonic() + self._poll_seconds
        while True:
            try:
                question = self._questions.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                question = (self._look, Future())
                due = time.monotonic() + self._poll_seconds
            if question is None or self.loop.is_closed():
                break
            self._answer(*question)
        self._link.close()

    def _answer(self, look: Callable[[sqlite3.Connection], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._link.reading() as db:
                answer = look(db)
        except Exception as error:
            if not self._failing:
                logger.warning("feed: broken error=%r", error)
            self._failing = True
            future.set_exception(error)
        else:
            self._failing = False
            future.set_result(answer)

    def _begin_to_watch(self, db: sqlite3.Connection, topic: str) -> None:
        # What is there already is no news for it.
        self._look(db)
        self._watched.add(topic)

    def _look(self, db: sqlite3.Connection) -> None:
        """Tell the loop what came since the last look."""
        known, [self._version] = self._version, db.execute("PRAGMA data_version").fetchone()
        if self._version == known:
            return
        seen, self._seen = self._seen, _last_key(db)
        if known is None:
            # A new connection, and perhaps a new file with keys of its own. Better a look too
            # many at every topic than an event too few.
            self._call(self._interrupt)
            return
        rows = db.execute(
            "SELECT topic, epoch, events.offset, events.chain, json "
            "FROM events JOIN topics USING (topic) "
            "WHERE seq > ? AND is_watched(topic) ORDER BY seq",
            [seen],
        ).fetchall()
        if rows:
            self._call(self._deliver, rows)

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.create_function("is_watched", 1, self._watched.__contains__)
        self._version = None

    def _call(self, function: Callable[..., object], *args: object) -> None:
        # Closed in this very moment: then nobody listens.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *args)

    # On the loop.

    def _interrupt(self) -> None:
        for topic, sink in list(self._sinks.items()):
            sink.interrupted(topic)

    def _deliver(self, rows: list[Row]) -> None:
        waiting: dict[str, tuple[str, list[Event]]] = {}
        for topic, epoch, offset, chain, json in rows:
            if json is None:
                self._tell(topic, *waiting.pop(topic, ("", [])))
                if topic in self._sinks:
                    self._sinks[topic].gone(topic)
            else:
                waiting.setdefault(topic, (epoch, []))[1].append(Event(offset, chain, json))
        for topic, (epoch, events) in waiting.items():
            self._tell(topic, epoch, events)

    def _tell(self, topic: str, epoch: str, events: list[Event]) -> None:
        sink = self._sinks.get(topic)
        if sink is not None and events:
            # If the log was trimmed before the look, prev is where the rest begins: a gap,
            # which is what it is.
            sink.events(topic, epoch, events[0].offset - 1, events)


def _last_key(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(row[0]) if row else 0
