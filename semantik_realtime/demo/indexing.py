"""The work of a job: read, split and index its documents."""

import time

from sqlalchemy import select

from semantik_realtime import job
from semantik_realtime.clock import now_text
from semantik_realtime.demo.library import NotInFolder, locate
from semantik_realtime.demo.records import MAX_FAILURES, Document, Job, Sessions
from semantik_realtime.demo.search import SearchIndex
from semantik_realtime.demo.settings import DemoSettings
from semantik_realtime.demo.texts import Unreadable, read_text, split

SAVE_SECONDS = 0.5


class Cancelled(Exception):
    """The job was cancelled or deleted; the documents indexed until then stay indexed."""


class Counts:
    """How far a job is. Browsers get the counts live, the database every SAVE_SECONDS."""

    def __init__(self) -> None:
        self.total_files = 0
        self.processed_files = 0
        self.failed_files = 0
        self.chunks = 0
        self.current_file: str | None = None
        """The file that was begun last."""
        self.failures: list[dict[str, str]] = []
        """The first MAX_FAILURES failed files: ``{"file", "reason"}``."""

    def begin(self, total_files: int, row: Job) -> int:
        """Continue from the counts of an earlier attempt; return how many files it has read."""
        self.total_files = total_files
        self.processed_files, self.failed_files = row.processed_files, row.failed_files
        self.chunks, self.failures = row.chunks, list(row.failures)
        return min(total_files, self.processed_files + self.failed_files)

    def begin_file(self, name: str) -> None:
        self.current_file = name

    def add_indexed(self, chunks: int) -> None:
        self.processed_files += 1
        self.chunks += chunks

    def add_failed(self, file: str, reason: str) -> None:
        self.failed_files += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append({"file": file, "reason": reason})

    def fields(self) -> dict[str, int | str | None]:
        """Return the fields of the job's state."""
        return {name: value for name, value in vars(self).items() if name != "failures"}

    def columns(self) -> dict[str, object]:
        """Return the columns of the job's row."""
        return {**vars(self), "failures": list(self.failures), "updated_at": now_text()}


def run_job(job_id: str, settings: DemoSettings, sessions: Sessions) -> dict[str, int]:
    """Index the documents of a job and return its counts.

    A file that cannot be read counts as failed, and the job goes on.

    Raises:
        Cancelled: The job was cancelled or deleted; its row, if any, has the status cancelled.
    """
    return _Run(job_id, settings, sessions).run()


class _Run:
    """One attempt of a job."""

    def __init__(self, job_id: str, settings: DemoSettings, sessions: Sessions) -> None:
        self._job_id = job_id
        self._settings = settings
        self._sessions = sessions
        self._counts = Counts()
        self._saved_at = 0.0
        """When the row of the job was last written, monotonic seconds."""

    def run(self) -> dict[str, int]:
        counts = self._counts
        try:
            self._index_all()
        except Cancelled:
            self._end(status="cancelled")
            raise
        except BaseException as error:
            self._end(status="failed", error={"type": type(error).__name__, "message": str(error)})
            raise
        self._end(status="completed")
        return {
            "processed_files": counts.processed_files,
            "failed_files": counts.failed_files,
            "chunks": counts.chunks,
        }

    def _index_all(self) -> None:
        with self._sessions() as session:
            row = session.get(Job, self._job_id)
            if row is None:
                raise Cancelled
            owned = select(Document).where(Document.user_id == row.user_id)
            by_id = {document.id: document for document in session.scalars(owned)}
        documents = [by_id[number] for number in row.document_ids if number in by_id]
        total = len(documents)
        done = self._counts.begin(total, row)
        attempt, now = row.attempt + 1, now_text()
        self._save(status="running", attempt=attempt, started_at=now, ended_at=None, error=None)
        job.set(**self._counts.fields())
        with SearchIndex(self._settings.search_index(row.user_id)) as index:
            # Not `track`: it begins at 0, and a second attempt does not.
            job.progress(done, total, "Indexing", "files")
            for number, document in enumerate(documents[done:], done + 1):
                if number > done + 1:
                    self._pause(row.pause_seconds)
                self._counts.begin_file(document.name)
                self._save()
                job.set(current_file=document.name)
                job.emit("file_processing", file=document.name)
                self._index(document, index)
                job.progress(number, total, None, "files")
        job.set(current_file=None)

    def _index(self, document: Document, index: SearchIndex) -> None:
        """Index one document, and record and emit the result."""
        try:
            text = read_text(locate(document, self._settings), self._settings.max_document_bytes)
            chunks = index.replace(document.id, document.name, split(text))
        except (Unreadable, NotInFolder) as error:
            reason = "not found" if isinstance(error, NotInFolder) else str(error)
            self._counts.add_failed(document.name, reason)
            self._update(document, status="failed", error=reason, chunks=0)
            job.set(**self._counts.fields())
            job.emit("file_failed", file=document.name, reason=reason)
        else:
            self._counts.add_indexed(chunks)
            now = now_text()
            self._update(document, status="indexed", error=None, chunks=chunks, indexed_at=now)
            job.set(**self._counts.fields())
            job.emit("file_completed", file=document.name, chunks=chunks)

    def _update(self, document: Document, **columns: object) -> None:
        """Write the rows of a document and of the job; nothing of one that was deleted.

        In one transaction: a later attempt begins with the document after this one.
        """
        with self._sessions.begin() as session:
            row = session.get(Document, document.id)
            if row is not None:
                row.update(**columns)
            job_row = session.get(Job, self._job_id)
            if job_row is not None:
                job_row.update(**self._counts.columns())

    def _pause(self, seconds: float) -> None:
        """Wait; raise Cancelled within SAVE_SECONDS of a cancellation."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SAVE_SECONDS))
            self._save()

    def _save(self, **columns: object) -> None:
        """Write the row of the job at most every SAVE_SECONDS; with columns at once.

        Raises:
            Cancelled: The job was cancelled or deleted. Checked before each write.
        """
        now = time.monotonic()
        if not columns and now - self._saved_at < SAVE_SECONDS:
            return
        self._saved_at = now
        with self._sessions.begin() as session:
            row = session.get(Job, self._job_id)
            if row is None or row.cancel_requested or row.status == "cancelled":
                raise Cancelled
            row.update(**self._counts.columns() | columns)

    def _end(self, **columns: object) -> None:
        """Write how the job ended; does nothing if it was deleted."""
        with self._sessions.begin() as session:
            row = session.get(Job, self._job_id)
            if row is not None:
                end = {"current_file": None, "ended_at": now_text()}
                row.update(**self._counts.columns() | end | columns)
