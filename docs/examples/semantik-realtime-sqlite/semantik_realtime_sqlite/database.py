"""The connection to the file: opened at first use, used by one caller at a time, safe in forks."""

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

from tenacity import Retrying, retry_if_exception, wait_fixed

from semantik_realtime.errors import (
    AppendUncertain,
    BackendError,
    BackendRefused,
    BackendUnavailable,
)

SCHEMA_VERSION = 3
"""Stored in the file as ``user_version``."""
BUSY_PAUSE_SECONDS = 0.01

_REFUSALS = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
)
"""The error codes for which a retry alone is useless."""


def explain(error: sqlite3.Error) -> BackendError:
    """Return the `BackendError` that tells a caller of the backend what to do about ``error``."""
    # The low byte is the error's kind; the others are details.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    kind = BackendRefused if code in _REFUSALS else BackendUnavailable
    return kind(f"{type(error).__name__}: {error}")


class Database:
    """Opens the file at first use, creates the schema in a new file, and runs transactions.

    Any thread may use it; one at a time does, and the others wait. The connection is closed
    after every error, because it may be in the middle of a transaction, and before every fork.
    """

    def __init__(
        self,
        path: Path,
        synchronous: str,
        timeout_seconds: float,
        on_connect: Callable[[sqlite3.Connection], object] = lambda connection: None,
    ) -> None:
        """Open nothing yet.

        Args:
            path: of the file; its folder must exist when it is opened.
            synchronous: SQLite's setting of that name.
            timeout_seconds: for a transaction to begin: waiting for other threads and processes.
            on_connect: called with each new connection.
        """
        self._path = path
        self._synchronous = synchronous
        self._timeout_seconds = timeout_seconds
        self._on_connect = on_connect
        self._lock = threading.Lock()
        """Held during a transaction, and during a fork."""
        self._connection: sqlite3.Connection | None = None
        """None before the first use, after an error and after a fork."""
        self._file: tuple[int, int] | None = None
        """Device and inode of the file that the connection has open."""
        _databases.add(self)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction that sees the file as of one moment.

        Raises:
            BackendUnavailable, BackendRefused: the file cannot be read.
        """
        with self._locked() as connection:
            try:
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise explain(error) from error

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction: everything that it writes is committed, or nothing.

        Raises:
            BackendUnavailable, BackendRefused: nothing was written.
            AppendUncertain: the commit failed; it may have been written.
        """
        with self._locked() as connection:
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
        """Close the connection; the next use opens another. Idempotent."""
        with self._lock:
            self._disconnect()

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        deadline = time.monotonic() + self._timeout_seconds
        if not self._lock.acquire(timeout=self._timeout_seconds):
            raise BackendUnavailable("another thread is still writing")
        try:
            if self._connection is not None and self._file != self._find_file():
                # The file was removed or replaced: other processes no longer use the open one.
                self._disconnect()
            if self._connection is None:
                self._connection = self._connect(deadline)
                self._file = self._find_file()
            # The wait for the lock counts: SQLite gets the rest of the timeout.
            left_milliseconds = max(0, round((deadline - time.monotonic()) * 1000))
            self._connection.execute(f"PRAGMA busy_timeout = {left_milliseconds}")
            yield self._connection
        except BaseException:
            self._disconnect()
            raise
        finally:
            self._lock.release()

    def _connect(self, deadline: float) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path,
                timeout=self._timeout_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise explain(error) from error
        # While another process sets a new file to WAL, SQLite reports BUSY at once, without
        # waiting for the busy timeout.
        retrying = Retrying(
            retry=retry_if_exception(_is_busy),
            wait=wait_fixed(BUSY_PAUSE_SECONDS),
            stop=lambda _: time.monotonic() > deadline,
            reraise=True,
        )
        try:
            retrying(self._create_schema, connection)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            self._on_connect(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise explain(error) from error
            raise
        return connection

    @staticmethod
    def _create_schema(connection: sqlite3.Connection) -> None:
        """Create the schema in a new file.

        Raises:
            BackendRefused: the file has a schema of another version.
        """
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                schema = (files(__package__) / "schema.sql").read_text()
                for statement in schema.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                version = SCHEMA_VERSION
            connection.execute("COMMIT")
        if version != SCHEMA_VERSION:
            raise BackendRefused(f"the file has schema {version}, needed is {SCHEMA_VERSION}")

    def _find_file(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _before_fork(self) -> None:
        # SQLite's locks belong to a process. A child that inherits an open connection believes
        # that it holds its parent's locks, even if it never uses the connection
        # (https://sqlite.org/howtocorrupt.html).
        self._lock.acquire()
        self._disconnect()

    def _after_fork(self) -> None:
        self._lock.release()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()
"""All of this process."""
_forking: list[Database] = []
"""Those that are locked during a fork."""


def _is_busy(error: BaseException) -> bool:
    return (
        isinstance(error, sqlite3.OperationalError)
        and error.sqlite_errorcode == sqlite3.SQLITE_BUSY
    )


def _before_fork() -> None:
    _forking.extend(_databases)
    for database in _forking:
        database._before_fork()


def _after_fork() -> None:
    while _forking:
        _forking.pop()._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
