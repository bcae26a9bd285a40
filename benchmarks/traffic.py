"""The events that are measured: those of an indexing job, numbered and with their time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.job import Job, JobMeta

FIRST_OFFSET = 3
"""Of the event with number 0: before it, the job has begun."""


class _Numbered(msgspec.Struct, frozen=True):
    n: int = -1
    at: int = 0


class _Counted(msgspec.Struct, frozen=True):
    current: float = -1


class _State(msgspec.Struct, frozen=True):
    progress: _Counted = _Counted()


class Told(msgspec.Struct, frozen=True):
    """What the census reads of an event: number and progress are -1 where it has none.

    ``data.at`` is when the publisher was called, in nanoseconds on the clock
    of `time.monotonic_ns`, which all processes of a machine share.
    """

    offset: int
    terminal: bool = False
    data: _Numbered = _Numbered()
    state: _State = _State()


read_event = msgspec.json.Decoder(Told).decode


def begin_job(runtime: Runtime, job_id: str) -> Job:
    """A running job with a state as applications have it."""
    job = Job(runtime, JobMeta(job_id), attempt=1)
    job.progress(17, 40)
    job.set(failed=0)
    job.begin()
    return job


def tell(jobs: Sequence[Job], numbers: Iterable[int]) -> None:
    """Emit one event for each number, by each job in turn. Each job numbers its own from 0."""
    for number in numbers:
        turn, place = divmod(number, len(jobs))
        jobs[place].emit("file_completed", file="report.pdf", n=turn, at=time.monotonic_ns())


def keep(first: int, end: int, lose: int) -> list[int]:
    """The numbers from ``first`` up to ``end``; with ``lose``, every so-manieth is left out."""
    return [number for number in range(first, end) if not lose or number % lose != lose - 1]


def share(numbers: int, jobs: int, place: int) -> int:
    """How many of ``numbers`` the job at ``place`` of ``jobs`` had, taking turns."""
    return (numbers - place + jobs - 1) // jobs


class Template:
    """The same events without a log: what `tell` makes of one job, member by member."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._started_at = now_text()

    def event(self, number: int) -> dict[str, object]:
        """The event with this number, published now."""
        return {
            "offset": FIRST_OFFSET + number,
            "type": "file_completed",
            "time": now_text(),
            "key": self._job_id,
            "state": {
                "status": "running",
                "attempt": 1,
                "progress": {"current": 17, "total": 40},
                "fields": {"failed": 0},
                "started_at": self._started_at,
            },
            "data": {"file": "report.pdf", "n": number, "at": time.monotonic_ns()},
        }

    def text(self, number: int) -> str:
        """`event` as JSON."""
        return msgspec.json.encode(self.event(number)).decode()
