"""Everything that a process reads: a thread that polls the file, and sinks on the loop."""

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

from semantik_realtime.core.event import Event, position_before
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Sink
from semantik_realtime_sqlite.database import Database
from semantik_realtime_sqlite.settings import SqliteSettings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Row = tuple[str, str, int, int, bytes | None]
"""Topic, epoch, offset, chain and JSON of an event; without JSON: the topic was deleted."""


class Subscriber:
    """Everything that is read, on behalf of the loop on which it is made.

    One thread reads the file: it runs the reads of `read`, and polls for new events at fixed
    intervals, so the loop does nothing while there are none. Sinks are called on the loop.
    """

    def __init__(self, path: Path, sqlite_settings: SqliteSettings, timeout_seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        """On which every method is called."""
        self._poll_seconds = sqlite_settings.poll_seconds
        self._timeout_seconds = timeout_seconds
        self._database = Database(
            path, sqlite_settings.synchronous, timeout_seconds, self._on_connect
        )
        """Used by the thread only."""
        self._sinks: dict[str, Sink] = {}
        """The sink of each subscribed topic. Used on the loop only."""
        self._watched: set[str] = set()
        """Topics whose events are polled: added by the thread, removed by the loop."""
        self._reads: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        """Functions for the thread to run, with their futures; None ends the thread."""
        self._polled_seq = 0
        """The key of the last event that was polled. Used by the thread only."""
        self._data_version: int | None = None
        """SQLite's ``data_version`` at the last poll; None on a new connection. It changes when
        another connection commits. Used by the thread only."""
        self._failing = False
        """True if the last read failed; then the next failure is not logged."""
        self._thread = threading.Thread(
            target=self._run, name="semantik-realtime-sqlite", daemon=True
        )

    async def open(self) -> None:
        """Start to read.

        Raises:
            BackendUnavailable, BackendRefused: the file cannot be read. Call `close`.
        """
        self._thread.start()
        await self.read(self._poll)

    def close(self) -> None:
        """End the thread and its connection, without waiting; no sink is called any more."""
        self._sinks.clear()
        self._reads.put(None)

    async def read(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run ``function`` in the thread, in a read transaction, and return its result.

        Raises:
            BackendUnavailable, BackendRefused: the file cannot be read, or not in time.
        """
        future: Future[Result] = Future()
        self._reads.put((function, future))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise BackendUnavailable(f"not read in {self._timeout_seconds:g} s") from None

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """Deliver to ``sink`` what is committed from now on.

        Raises:
            BackendUnavailable, BackendRefused: the topic is not subscribed.
        """
        self._sinks[topic] = sink
        try:
            await self.read(lambda db: self._watch(db, topic))
        except BaseException:
            if self._sinks.get(topic) is sink:
                self.unsubscribe(topic)
            raise

    def unsubscribe(self, topic: str) -> None:
        """Stop calling the topic's sink, at once."""
        self._sinks.pop(topic, None)
        self._watched.discard(topic)

    # In the thread.

    def _run(self) -> None:
        poll_at = time.monotonic() + self._poll_seconds
        while True:
            try:
                read = self._reads.get(timeout=max(0.0, poll_at - time.monotonic()))
            except queue.Empty:
                read = (self._poll, Future())
                poll_at = time.monotonic() + self._poll_seconds
            if read is None or self.loop.is_closed():
                break
            self._execute(*read)
        self._database.close()

    def _execute(self, function: Callable[[sqlite3.Connection], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._database.read() as db:
                result = function(db)
        except Exception as error:
            if not self._failing:
                logger.warning("subscriber: cannot read the file error=%r", error)
            self._failing = True
            future.set_exception(error)
        else:
            self._failing = False
            future.set_result(result)

    def _watch(self, db: sqlite3.Connection, topic: str) -> None:
        # Poll first, so that the sink does not get events from before the subscription.
        self._poll(db)
        self._watched.add(topic)

    def _poll(self, db: sqlite3.Connection) -> None:
        """Pass the events since the last poll to the loop."""
        known = self._data_version
        [self._data_version] = db.execute("PRAGMA data_version").fetchone()
        if self._data_version == known:
            return
        polled_seq, self._polled_seq = self._polled_seq, _last_seq(db)
        if known is None:
            # A new connection, perhaps to another file, in which the last key means nothing:
            # events may have been missed.
            self._call_on_loop(self._interrupt)
            return
        rows = db.execute(
            "SELECT topic, epoch, events.offset, events.chain, json "
            "FROM events JOIN topics USING (topic) "
            "WHERE seq > ? AND is_watched(topic) ORDER BY seq",
            [polled_seq],
        ).fetchall()
        if rows:
            self._call_on_loop(self._deliver, rows)

    def _on_connect(self, db: sqlite3.Connection) -> None:
        db.create_function("is_watched", 1, self._watched.__contains__)
        self._data_version = None

    def _call_on_loop(self, function: Callable[..., object], *args: object) -> None:
        # A closed loop has no sinks, and would raise.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *args)

    # On the loop.

    def _interrupt(self) -> None:
        for topic, sink in list(self._sinks.items()):
            sink.interrupted(topic)

    def _deliver(self, rows: list[Row]) -> None:
        batches: dict[str, tuple[str, list[Event]]] = {}
        for topic, epoch, offset, chain, json in rows:
            if json is None:
                self._deliver_batch(topic, *batches.pop(topic, ("", [])))
                if topic in self._sinks:
                    self._sinks[topic].gone(topic)
            else:
                batches.setdefault(topic, (epoch, []))[1].append(Event(offset, chain, json))
        for topic, (epoch, events) in batches.items():
            self._deliver_batch(topic, epoch, events)

    def _deliver_batch(self, topic: str, epoch: str, events: list[Event]) -> None:
        sink = self._sinks.get(topic)
        if sink is not None and events:
            # If older events were trimmed before the poll, prev is after the last one that the
            # sink has: a gap, and its reader resyncs.
            sink.events(topic, position_before(epoch, events[0]), events)


def _last_seq(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(row[0]) if row else 0
