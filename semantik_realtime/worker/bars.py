"""Progress bars of a job: the one that its state shows, and those inside it."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from semantik_realtime.worker.values import BAD_VALUE, clean_line, clean_number, note_misuse

if TYPE_CHECKING:
    from semantik_realtime.worker.job import Job

MAX_INNER = 8
"""Inner bars that a state shows: those that were opened first."""
MAX_LABEL_CHARACTERS = 100
"""What is kept of the message of an inner bar."""


class Bar:
    """One progress bar of a job, open until `close`, or until its ``with`` block ends.

    The outermost bar, which was opened first of those that are open, is the job's
    progress. The others are in ``progress.inner``, in the order in which they were
    opened, and the newest one's message is the job's message. No method raises
    or waits; any thread may call them. Outside a job a bar only counts.

    Args:
        job: whose bar it is; None: nobody's.
        total: how much there is to do; None: unknown.
        message: what is being done, in one line.
        unit: what is counted: ``"files"``.
    """

    __slots__ = ("_before", "_current", "_job", "_lock", "_message", "_total", "unit")

    def __init__(
        self, job: Job | None, total: float | None = None, message: str = "", unit: str = ""
    ) -> None:
        self.unit = unit
        # None: outside a job, or closed.
        self._job = job
        self._current: float = 0
        self._total = total
        self._message = message
        # The job's message before this bar, which comes back after an inner one.
        self._before: str | None = None
        # Around each change of the count, which several threads may make.
        self._lock = threading.Lock()
        if job is not None:
            self._before = job.last_message
            job.bars.append(self)
            if message:
                job.message(message)
            self._report()

    @property
    def current(self) -> float:
        """How much is done."""
        return self._current

    @property
    def total(self) -> float | None:
        """How much there is to do; None: unknown. May be set at any time."""
        return self._total

    @total.setter
    def total(self, total: float | None) -> None:
        self._total = total
        self._report()

    def advance(self, amount: float = 1) -> None:
        """Add ``amount`` to what is done; it may be negative."""
        with self._lock:
            try:
                self._current += amount
            except TypeError as error:
                self._note(error)
                return
        self._report()

    update = advance
    """As tqdm calls it."""

    def set(self, current: float) -> None:
        """Say how much is done in all."""
        self._current = current
        self._report()

    def message(self, text: str) -> None:
        """Replace the message. It is the job's too until another one follows."""
        if text != self._message and self._job is not None:
            self._message = text
            self._job.message(text)

    def show(self, current: float, total: float | None, unit: str, message: str = "") -> None:
        """Set everything at once; an empty message stays what it was."""
        self._current, self._total, self.unit = current, total, unit
        if message:
            self.message(message)
        self._report()

    def close(self) -> None:
        """Remove the bar. The job's progress stays; an inner bar vanishes. Idempotent."""
        job, self._job = self._job, None
        if job is None or self not in job.bars:
            return
        is_outermost = job.bars[0] is self
        job.bars.remove(self)
        if not is_outermost:
            if self._message and self._before is not None:
                job.message(self._before)
            job.schedule()
        else:
            for successor in job.bars[:1]:
                successor._report()

    def as_inner(self) -> dict[str, Any]:
        """Return how a state shows it inside another one.

        Raises:
            TypeError, ValueError, OverflowError: a value is not fit.
        """
        shown: dict[str, Any] = {
            "current": clean_number(self._current),
            "total": None if self._total is None else clean_number(self._total),
        }
        if self.unit:
            shown["unit"] = clean_line(self.unit)
        if self._message:
            shown["message"] = clean_line(self._message)[:MAX_LABEL_CHARACTERS]
        return shown

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _report(self) -> None:
        job = self._job
        if job is None:
            return
        try:
            is_outermost = job.bars[0] is self
        except IndexError:
            # Another thread has closed it.
            return
        if is_outermost:
            job.progress(self._current, self._total, None, self.unit or None)
        else:
            job.schedule()

    def _note(self, error: Exception) -> None:
        note_misuse(
            "progress is not a number", "" if self._job is None else self._job.id, str(error)
        )


def inner_bars(bars: list[Bar], job_id: str) -> list[dict[str, Any]]:
    """Return how a state shows the bars inside the outermost one; a bad one is noted, and left out.

    Args:
        bars: the open bars, the outermost first.
        job_id: for the log line.
    """
    shown = []
    for bar in bars[1 : 1 + MAX_INNER]:
        try:
            shown.append(bar.as_inner())
        except BAD_VALUE as error:
            note_misuse("progress is not a number", job_id, str(error))
    return shown
