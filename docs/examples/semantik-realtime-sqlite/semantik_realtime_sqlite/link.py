"""A connection to the file: one at a time uses it, and no fork carries it along."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from semantik_realtime.errors import (
    AppendUncertain,
    BackendError,
    BackendRefused,
    BackendUnavailable,
)

VERSION = 1
"""Of the schema, kept in the file."""
BUSY_PAUSE_SECONDS = 0.01

_FOR_GOOD = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
)


def explain(error: sqlite3.Error) -> BackendError:
    """Our word for what SQLite said."""
    # The low byte is the kind; the rest says more than a caller can use.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    kind = BackendRefused if code in _FOR_GOOD else BackendUnavailable
    return kind(f"{type(error).__name__}: {error}")


class Link:
    """Opens the file at first use, makes the schema if there is none, and lends the connection."""

    def __init__(
        self,
        path: Path,
        synchronous: str,
        timeout_seconds: float,
        prepare: Callable[[sqlite3.Connection], object] = lambda connection: None,
    ) -> None:
        self._path = path
        self._synchronous = synchronous
        self._timeout_seconds = timeout_seconds
        self._prepare = prepare
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        _links.add(self)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One moment of the file, for as long as the block lasts.

        Raises:
            BackendUnavailable, BackendRefused: it cannot be read.
        """
        with self._lent() as connection:
            try:
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise explain(error) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: what the block wrote is there whole, or not at all.

        Raises:
            BackendUnavailable, BackendRefused: nothing was written.
            AppendUncertain: it failed at the very end.
        """
        with self._lent() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
            except sqlite3.Error as error:
                raise explain(error) from error
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise AppendUncertain(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Give the connection up; the next use makes another."""
        with self._lock:
            self._drop()

    @contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + self._timeout_seconds
        if not self._lock.acquire(timeout=self._timeout_seconds):
            raise BackendUnavailable("another thread is still writing")
        try:
            if self._connection is not None and self._file != self._file_now():
                # Removed or replaced: what we have open is nobody else's any more.
                self._drop()
            if self._connection is None:
                self._connection = self._open(deadline)
                self._file = self._file_now()
            # Whoever waited for the lock has less time left for the file.
            left = max(0, round((deadline - time.monotonic()) * 1000))
            self._connection.execute(f"PRAGMA busy_timeout = {left}")
            yield self._connection
        except BaseException:
            # In the middle of a transaction or broken: either way, of no use to the next.
            self._drop()
            raise
        finally:
            self._lock.release()

    def _open(self, deadline: float) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path,
                timeout=self._timeout_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise explain(error) from error
        try:
            while True:
                try:
                    self._make_schema(connection)
                    break
                except sqlite3.OperationalError as error:
                    # Who turns a new file to WAL is alone; the others are told that it is
                    # busy, without waiting for it.
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(BUSY_PAUSE_SECONDS)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            self._prepare(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise explain(error) from error
            raise
        return connection

    @staticmethod
    def _make_schema(connection: sqlite3.Connection) -> None:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                schema = (files(__package__) / "schema.sql").read_text()
                for statement in schema.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
                version = VERSION
            connection.execute("COMMIT")
        if version != VERSION:
            raise BackendRefused(f"the file has the schema {version}, not {VERSION}")

    def _file_now(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _before_fork(self) -> None:
        # SQLite's locks belong to the process. A child that inherits a connection believes to
        # hold what it does not hold, even if it never touches it: sqlite.org/howtocorrupt.html.
        self._lock.acquire()
        self._drop()

    def _after_fork(self) -> None:
        self._lock.release()


_links: weakref.WeakSet[Link] = weakref.WeakSet()
_forking: list[Link] = []


def _before_fork() -> None:
    _forking.extend(_links)
    for link in _forking:
        link._before_fork()


def _after_fork() -> None:
    while _forking:
        _forking.pop()._after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
