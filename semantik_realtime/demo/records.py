"""The tables of the database: users, documents and jobs."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, ForeignKey, String, UniqueConstraint, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from semantik_realtime.clock import now_text
from semantik_realtime.demo.private import create_private_file

Sessions = sessionmaker[Session]

LOST_AFTER_SECONDS = 15.0
"""A running job updates its row about every 0.5 s; without an update for this long it is lost."""

MAX_ID = 2**63 - 1
"""The largest id that a database's integer can hold."""

MAX_FAILURES = 100
"""Failed files of a job whose reasons are kept."""


class Base(DeclarativeBase):
    """A row."""

    def update(self, **columns: object) -> None:
        for name, value in columns.items():
            setattr(self, name, value)


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    password: Mapped[str] = mapped_column(String(200))


class Document(Base):
    __tablename__ = "documents"
    __table_args__ = (UniqueConstraint("user_id", "origin", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    origin: Mapped[str] = mapped_column(String(10))
    """``folder`` or ``upload``."""
    name: Mapped[str] = mapped_column(String(500))
    """For people. Of a file in the folder, the path relative to the folder."""
    stored: Mapped[str] = mapped_column(String(500))
    """Path relative to the folder, or to the user's uploads."""
    size_bytes: Mapped[int]
    status: Mapped[str] = mapped_column(String(10), default="new")
    """``new``, ``indexed`` or ``failed``."""
    chunks: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None] = mapped_column(String(500))
    indexed_at: Mapped[str | None] = mapped_column(String(24))

    def view(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "origin": self.origin,
            "size_bytes": self.size_bytes,
            "status": self.status,
            "chunks": self.chunks,
            "error": self.error,
            "indexed_at": self.indexed_at,
        }


class Job(Base):
    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    """The id of the Celery task too."""
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    label: Mapped[str] = mapped_column(String(500))
    document_ids: Mapped[list[int]] = mapped_column(JSON)
    pause_seconds: Mapped[float] = mapped_column(default=0.0)
    status: Mapped[str] = mapped_column(String(10), default="queued")
    attempt: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    total_files: Mapped[int] = mapped_column(default=0)
    processed_files: Mapped[int] = mapped_column(default=0)
    failed_files: Mapped[int] = mapped_column(default=0)
    chunks: Mapped[int] = mapped_column(default=0)
    current_file: Mapped[str | None] = mapped_column(String(500))
    failures: Mapped[list[dict[str, str]]] = mapped_column(JSON, default=list)
    """The first MAX_FAILURES failed files: ``{"file", "reason"}``."""
    error: Mapped[dict[str, str] | None] = mapped_column(JSON)
    queued_at: Mapped[str] = mapped_column(String(24), default=now_text)
    started_at: Mapped[str | None] = mapped_column(String(24))
    ended_at: Mapped[str | None] = mapped_column(String(24))
    updated_at: Mapped[str] = mapped_column(String(24), default=now_text)

    def state(self) -> dict[str, Any]:
        """Return the job's state in the form of the protocol (docs/protocol.md)."""
        status = self.status
        silence = datetime.now(UTC) - datetime.fromisoformat(self.updated_at)
        if status == "running" and silence.total_seconds() > LOST_AFTER_SECONDS:
            status = "lost"
        state: dict[str, Any] = {
            "status": status,
            "attempt": self.attempt,
            "progress": {
                "current": self.processed_files + self.failed_files,
                "total": self.total_files,
                "unit": "files",
            },
            "message": "Indexing" if self.attempt else "",
            "fields": {
                "total_files": self.total_files,
                "processed_files": self.processed_files,
                "failed_files": self.failed_files,
                "current_file": self.current_file,
                "chunks": self.chunks,
            },
            "queued_at": self.queued_at,
        }
        optional = {
            "error": self.error,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }
        return state | {name: value for name, value in optional.items() if value is not None}

    def view(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "topic": f"job:{self.id}",
            "feed": f"user:{self.user_id}",
            "label": self.label,
            "cancel_requested": self.cancel_requested,
            "state": self.state(),
        }


def open_records(url: str) -> Sessions:
    """Connect to the database and create its missing tables."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        file = engine.url.database
        if file and file != ":memory:" and not file.startswith("file:"):
            create_private_file(Path(file))
        event.listen(engine, "connect", _prepare_sqlite)
    Base.metadata.create_all(engine)
    return sessionmaker(engine, expire_on_commit=False)


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    # Without WAL the worker's writes and the web server's reads would block each other.
    for pragma in ("journal_mode=WAL", "busy_timeout=10000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
