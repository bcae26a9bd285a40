"""The jobs that worker processes hold: a sorted set of deadlines, and a hash for each holder.

All of these keys are in one slot, that of ``{holders}``. A key expires by itself
when nobody has asked for it for `HELD_KEEP_SECONDS`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from semantik_realtime.backends.redis.script import GIVE, HOLD, OVERDUE, milliseconds
from semantik_realtime.backends.redis.writer import Writer
from semantik_realtime.core.holding import (
    HELD_KEEP_SECONDS,
    Holding,
    check_hold,
    given_name,
    worker_of,
)
from semantik_realtime.core.limits import MAX_GIVEN_HOLDERS, MAX_GIVEN_JOBS

_JOBS_A_CALL = 500
"""Jobs of one run of the script, during which the server does nothing else."""
_KEEP_MS = round(HELD_KEEP_SECONDS * 1000)


class Holders:
    """See `semantik_realtime.hookspecs.Backend.hold`. From any thread.

    Args:
        writer: runs the scripts.
        prefix: the first part of every key.
    """

    def __init__(self, writer: Writer, prefix: str) -> None:
        self._writer = writer
        self._due = f"{prefix}:{{holders}}"

    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        check_hold(holder, jobs, ended)
        flat: list[str | bytes] = [part for job in jobs.items() for part in job]
        gone = [job for job in ended if job not in jobs]
        begins = range(0, max(len(jobs), len(gone), 1), _JOBS_A_CALL)
        keys = [self._due, self._jobs(holder)]
        calls: list[tuple[Sequence[str], Sequence[Any]]] = []
        for begin in begins:
            end = begin + _JOBS_A_CALL
            removed = gone[begin:end]
            args = (holder, milliseconds(seconds), _KEEP_MS, len(removed), *removed)
            calls.append((keys, (*args, *flat[2 * begin : 2 * end])))
        return bool(self._writer.run_all(HOLD, calls)[0])

    def overdue(self, seconds: float) -> list[Holding]:
        found = self._writer.run(OVERDUE, [self._due], MAX_GIVEN_HOLDERS)
        token = secrets.token_hex(4)
        given: list[Holding] = []
        count = 0
        for holder in (name.decode() for name in found):
            if count >= MAX_GIVEN_JOBS:
                break
            name = given_name(holder, token)
            keys = [self._due, self._jobs(holder), self._jobs(name)]
            flat = self._writer.run(GIVE, keys, holder, name, milliseconds(seconds), _KEEP_MS)
            jobs = {job.decode(): record for job, record in zip(flat[::2], flat[1::2], strict=True)}
            if jobs:
                given.append(Holding(name, worker_of(holder), jobs))
                count += len(jobs)
        return given

    def _jobs(self, holder: str) -> str:
        return f"{self._due}:{holder}"
