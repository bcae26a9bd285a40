"""The events that are measured: those of an indexing job, with a number and a time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta

FIRST_OFFSET = 3
"""Offset of the event with number 0; `begin_job` appends the two before it."""


class _Data(msgspec.Struct, frozen=True):
    n: int = -1
    at: int = 0


class _Progress(msgspec.Struct, frozen=True):
    current: float = -1


class _State(msgspec.Struct, frozen=True):
    progress: _Progress = _Progress()


class NumberedEvent(msgspec.Struct, frozen=True):
    """The members of an event that are measured.

    ``data.n`` is the event's number and ``state.progress.current`` its progress, -1 where it
    has none. ``data.at`` is when the publisher was called, in nanoseconds on the clock of
    `time.monotonic_ns`, which all processes of a machine share.
    """

    offset: int
    terminal: bool = False
    data: _Data = _Data()
    state: _State = _State()


read_event = msgspec.json.Decoder(NumberedEvent).decode


def job_topic(job_id: str) -> str:
    """Return the topic of a job's events."""
    return f"job:{job_id}"


def begin_job(runtime: Runtime, job_id: str) -> Job:
    """Return a job that has begun, with a state as applications have it."""
    job = Job(runtime, JobMeta(job_id), attempt=1)
    job.progress(17, 40)
    job.set(failed=0)
    job.begin()
    return job


def emit_events(jobs: Sequence[Job], numbers: Iterable[int]) -> None:
    """Emit one event for each number, by each job in turn. Each job numbers its own from 0."""
    for number in numbers:
        turn, place = divmod(number, len(jobs))
        jobs[place].emit("file_completed", file="report.pdf", n=turn, at=time.monotonic_ns())


def numbers_without(first: int, end: int, lose: int) -> list[int]:
    """Return the numbers from ``first`` up to ``end``, without every ``lose``-th unless that is 0.

    >>> numbers_without(0, 7, 3)
    [0, 1, 3, 4, 6]
    """
    return [number for number in range(first, end) if not lose or number % lose != lose - 1]


def job_share(numbers: int, jobs: int, place: int) -> int:
    """Return how many of ``numbers`` events the job at ``place`` emits if ``jobs`` take turns."""
    return (numbers - place + jobs - 1) // jobs


class Template:
    """Makes events like those of `emit_events` for one job, but without a log."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._started_at = now_text()
        self._worker = secrets.token_hex(6)

    def event(self, number: int) -> dict[str, object]:
        """Return the event with this number; its times are now."""
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
                "worker": self._worker,
            },
            "data": {"file": "report.pdf", "n": number, "at": time.monotonic_ns()},
        }

    def text(self, number: int) -> str:
        """Return `event` as JSON."""
        return msgspec.json.encode(self.event(number)).decode()


class Templates:
    """Makes the events of several jobs that take turns, as `emit_events` does.

    A number below 0 is one of the first job.
    """

    def __init__(self, job_ids: Sequence[str]) -> None:
        self._jobs = [(job_topic(job_id), Template(job_id)) for job_id in job_ids]

    def event(self, number: int) -> tuple[str, dict[str, object]]:
        """Return the topic of the event with this number, and the event."""
        topic, template, turn = self._at(number)
        return topic, template.event(turn)

    def text(self, number: int) -> tuple[str, str]:
        """Return the topic of the event with this number, and the event as JSON."""
        topic, template, turn = self._at(number)
        return topic, template.text(turn)

    def _at(self, number: int) -> tuple[str, Template, int]:
        turn, place = (number, 0) if number < 0 else divmod(number, len(self._jobs))
        return (*self._jobs[place], turn)
