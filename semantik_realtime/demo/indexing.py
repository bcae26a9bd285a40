"""The work of a job: read, split and index its documents."""

import time
from dataclasses import dataclass, field

from sqlalchemy import select

from semantik_realtime import job, track
from semantik_realtime.demo.library import NotInFolder, locate
from semantik_realtime.demo.records import Document, Job, Sessions, timestamp
from semantik_realtime.demo.search import SearchIndex
from semantik_realtime.demo.settings import DemoSettings
from semantik_realtime.demo.texts import Unreadable, read_text, split

MAX_FAILURES_KEPT = 100
SAVE_SECONDS = 0.5


class Cancelled(Exception):
    """The job was cancelled or deleted; what was indexed until then stays indexed."""


@dataclass(slots=True)
class Tally:
    """How far a job is. The database gets it about twice a second, the browsers live."""

    total_files: int = 0
    processed_files: int = 0
    failed_files: int = 0
    chunks: int = 0
    current_file: str | None = None
    failures: list[dict[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int | str | None]:
        return {
            "total_files": self.total_files,
            "processed_files": self.processed_files,
            "failed_files": self.failed_files,
            "chunks": self.chunks,
            "current_file": self.current_file,
        }


class Ledger:
    """Keeps a job's row up to date, and learns from it that the job is to stop."""

    def __init__(self, sessions: Sessions, job_id: str) -> None:
        self._sessions = sessions
        self._job_id = job_id
        self._saved_at = 0.0

    def save(self, tally: Tally, **columns: object) -> None:
        """Write the row and look for a cancellation, at most every SAVE_SECONDS.

        With columns (a change of status) it is written at once.

        Raises:
            Cancelled: The user asked for it, or the row is gone.
        """
        now = time.monotonic()
        if not columns and now - self._saved_at < SAVE_SECONDS:
            return
        self._saved_at = now
        with self._sessions.begin() as session:
            row = session.get(Job, self._job_id)
            if row is None or row.cancel_requested or row.status == "cancelled":
                raise Cancelled
            self._write(row, tally, columns)

    def end(self, tally: Tally, **columns: object) -> None:
        """Write how the job ended, if the row is still there."""
        with self._sessions.begin() as session:
            row = session.get(Job, self._job_id)
            if row is not None:
                tally.current_file = None
                self._write(row, tally, columns | {"ended_at": timestamp()})

    def _write(self, row: Job, tally: Tally, columns: dict[str, object]) -> None:
        values = tally.counts() | {"failures": list(tally.failures), "updated_at": timestamp()}
        for name, value in (values | columns).items():
            setattr(row, name, value)


def run_job(job_id: str, settings: DemoSettings, sessions: Sessions) -> dict[str, int]:
    """Index the documents of a job and return its counts.

    A file that cannot be read counts as failed and the job goes on.

    Raises:
        Cancelled: The job was cancelled; its row says so.
    """
    tally = Tally()
    ledger = Ledger(sessions, job_id)
    try:
        _run(job_id, settings, sessions, tally, ledger)
    except Cancelled:
        ledger.end(tally, status="cancelled")
        raise
    except BaseException as error:
        ledger.end(
            tally, status="failed", error={"type": type(error).__name__, "message": str(error)}
        )
        raise
    ledger.end(tally, status="completed")
    return {
        "processed_files": tally.processed_files,
        "failed_files": tally.failed_files,
        "chunks": tally.chunks,
    }


def _run(
    job_id: str, settings: DemoSettings, sessions: Sessions, tally: Tally, ledger: Ledger
) -> None:
    with sessions() as session:
        row = session.get(Job, job_id)
        if row is None:
            raise Cancelled
        documents = {
            document.id: document
            for document in session.scalars(select(Document).where(Document.user_id == row.user_id))
        }
        chosen = [documents[number] for number in row.document_ids if number in documents]
        pause_seconds, user_id, attempt = row.pause_seconds, row.user_id, row.attempt + 1
    tally.total_files = len(chosen)
    ledger.save(
        tally, status="running", attempt=attempt, started_at=timestamp(), ended_at=None, error=None
    )
    job.set(**tally.counts())
    with SearchIndex(settings.search_index(user_id)) as index:
        for number, document in enumerate(track(chosen, "Indexing", unit="files")):
            # Here, not at the end: only now does the progress count the file before.
            if number:
                _pause(pause_seconds, tally, ledger)
            tally.current_file = document.name
            ledger.save(tally)
            job.set(current_file=document.name)
            job.emit("file_processing", file=document.name)
            try:
                path = locate(document, settings)
                text = read_text(path, settings.max_document_bytes)
                chunks = index.replace(document.id, document.name, split(text))
            except (Unreadable, NotInFolder) as error:
                reason = "not found" if isinstance(error, NotInFolder) else str(error)
                tally.failed_files += 1
                if len(tally.failures) < MAX_FAILURES_KEPT:
                    tally.failures.append({"file": document.name, "reason": reason})
                _mark(sessions, document.id, status="failed", error=reason, chunks=0)
                job.set(**tally.counts())
                job.emit("file_failed", file=document.name, reason=reason)
            else:
                tally.processed_files += 1
                tally.chunks += chunks
                _mark(
                    sessions,
                    document.id,
                    status="indexed",
                    error=None,
                    chunks=chunks,
                    indexed_at=timestamp(),
                )
                job.set(**tally.counts())
                job.emit("file_completed", file=document.name, chunks=chunks)
    tally.current_file = None
    job.set(current_file=None)


def _mark(sessions: Sessions, document_id: int, **columns: object) -> None:
    with sessions.begin() as session:
        document = session.get(Document, document_id)
        if document is not None:
            for name, value in columns.items():
                setattr(document, name, value)


def _pause(seconds: float, tally: Tally, ledger: Ledger) -> None:
    """Wait, and stop waiting soon after a cancellation."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, SAVE_SECONDS))
        ledger.save(tally)
