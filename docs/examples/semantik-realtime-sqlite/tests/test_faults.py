"""Faults of the file and of the settings, and the errors that they raise."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from semantik_realtime_sqlite.backend import SqliteBackend

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.core.resume import Reason
from semantik_realtime.errors import BackendRefused, BackendUnavailable, ConfigError
from semantik_realtime.testing.contract import Author

TOPIC = "job:1"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "realtime.db"


@pytest.fixture
def make_backend(file: Path) -> Iterator[Callable[..., SqliteBackend]]:
    made: list[SqliteBackend] = []

    def make(**settings: Any) -> SqliteBackend:
        url = f"sqlite:///{file}"
        made.append(SqliteBackend(load_settings(backend="sqlite", url=url, **settings)))
        return made[-1]

    yield make
    for backend in made:
        backend.close_writer()


def test_a_file_that_is_locked_for_too_long_is_unavailable_and_nothing_is_written(
    file: Path, make_backend: Callable[..., SqliteBackend]
) -> None:
    backend, draft = make_backend(timeout_seconds=0.3), Author().draft(TOPIC)
    backend.close_writer()
    backend.publish([Author().draft(TOPIC)])
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began_at = time.monotonic()
    with pytest.raises(BackendUnavailable, match="locked"):
        backend.publish([draft])
    assert time.monotonic() - began_at >= 0.25
    other.close()
    [receipt] = backend.publish([draft])
    assert (receipt.outcome, receipt.cursor.offset) == (Outcome.APPENDED, 2)


def test_a_file_that_is_no_database_is_refused(
    file: Path, make_backend: Callable[..., SqliteBackend]
) -> None:
    file.write_text("This is not a database. " * 100)
    with pytest.raises(BackendRefused, match="not a database"):
        make_backend().publish([Author().draft(TOPIC)])


def test_a_schema_of_another_version_is_refused(
    file: Path, make_backend: Callable[..., SqliteBackend]
) -> None:
    other = sqlite3.connect(file)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(BackendRefused, match="schema 99"):
        make_backend().publish([Author().draft(TOPIC)])


@pytest.mark.asyncio
async def test_a_missing_folder_is_unavailable_until_it_is_created(
    file: Path, make_backend: Callable[..., SqliteBackend]
) -> None:
    file.parent.rmdir()
    backend = make_backend()
    with pytest.raises(BackendUnavailable):
        backend.publish([Author().draft(TOPIC)])
    with pytest.raises(BackendUnavailable):
        await backend.open()
    assert not (await backend.status()).reachable
    file.parent.mkdir()
    await backend.open()
    assert (await backend.status()).reachable
    await backend.close()


@pytest.mark.parametrize(
    "url", [None, "redis://user:secret@host/0", "sqlite:///relative.db", "sqlite://"]
)
def test_a_url_without_an_absolute_path_is_refused_without_repeating_it(
    url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_URL") as caught:
        load_backend(load_settings(backend="sqlite", url=url))
    assert "secret" not in str(caught.value)


def test_an_error_names_the_wrong_setting(
    make_backend: Callable[..., SqliteBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMANTIK_REALTIME_SQLITE_POLL_SECONDS", "0")
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_SQLITE_POLL_SECONDS"):
        make_backend()


@pytest.mark.asyncio
async def test_a_replay_with_a_deleted_event_becomes_a_snapshot_with_the_reason(
    file: Path, make_backend: Callable[..., SqliteBackend]
) -> None:
    backend, author = make_backend(), Author()
    receipts = backend.publish([author.draft(TOPIC, state={"n": n}) for n in range(6)])
    with sqlite3.connect(file) as other:
        other.execute("DELETE FROM events WHERE offset = 4")
    other.close()
    await backend.open()
    try:
        snapshot = await backend.snapshot(TOPIC, receipts[1].cursor, 0)
        assert snapshot.reason is Reason.TRIMMED
        assert list(snapshot.states) == ["1"]
    finally:
        await backend.close()
