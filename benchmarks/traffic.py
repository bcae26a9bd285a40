"""The events that are measured: those of an indexing job, numbered."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from semantik_realtime.realtime import Runtime
from semantik_realtime.worker.job import Job, Origin


class _Numbered(msgspec.Struct, frozen=True):
    n: int = -1


class _Counted(msgspec.Struct, frozen=True):
    current: float = -1


class _State(msgspec.Struct, frozen=True):
    progress: _Counted = _Counted()


class Told(msgspec.Struct, frozen=True):
    """What the census reads of an event: number and progress are -1 where it has none."""

    offset: int
    terminal: bool = False
    data: _Numbered = _Numbered()
    state: _State = _State()


read_event = msgspec.json.Decoder(Told).decode


def begin_job(runtime: Runtime, job_id: str) -> Job:
    """A running job with a state as applications have it."""
    job = Job(runtime, Origin(job_id), attempt=1)
    job.progress(17, 40)
    job.set(failed=0)
    job.begin()
    return job


def tell(jobs: Sequence[Job], first: int, end: int, *, lose: int = 0) -> None:
    """Emit one event for each number from ``first`` up to ``end``, by each job in turn.

    Each job numbers its own from 0. With ``lose``, every so-manieth is left out.
    """
    for number in range(first, end):
        if lose and number % lose == lose - 1:
            continue
        turn, place = divmod(number, len(jobs))
        jobs[place].emit("file_completed", file="report.pdf", n=turn)


def share(numbers: int, jobs: int, place: int) -> int:
    """How many of ``numbers`` the job at ``place`` of ``jobs`` had, taking turns."""
    return (numbers - place + jobs - 1) // jobs
