"""The jobs that worker processes hold, for the backend in memory."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from semantik_realtime.core.holding import (
    HELD_KEEP_SECONDS,
    Holding,
    check_hold,
    given_name,
    worker_of,
)
from semantik_realtime.core.limits import MAX_GIVEN_HOLDERS, MAX_GIVEN_JOBS

MAX_HOLDERS = 10_000
"""Holders that are kept; the one whose deadline is the first is dropped."""


class Holders:
    """See `semantik_realtime.hookspecs.Backend.hold`. All under the backend's lock."""

    def __init__(self) -> None:
        # For each holder its jobs, never none.
        self._jobs: dict[str, dict[str, bytes]] = {}
        # For each holder the time when its deadline is over.
        self._ends_at: dict[str, float] = {}

    def hold(
        self,
        holder: str,
        jobs: Mapping[str, bytes],
        ended: Sequence[str],
        seconds: float,
        now: float,
    ) -> bool:
        check_hold(holder, jobs, ended)
        known = self._jobs.get(holder)
        held = known or {}
        for job in ended:
            held.pop(job, None)
        held.update(jobs)
        if held:
            self._jobs[holder] = held
            self._ends_at[holder] = now + seconds
            if len(self._jobs) > MAX_HOLDERS:
                self._forget(min(self._ends_at, key=self._ends_at.__getitem__))
        elif known is not None:
            self._forget(holder)
        return known is not None

    def overdue(self, seconds: float, now: float) -> list[Holding]:
        given: list[Holding] = []
        count = 0
        for ends_at, holder in sorted((at, name) for name, at in self._ends_at.items()):
            if ends_at > now or len(given) == MAX_GIVEN_HOLDERS or count >= MAX_GIVEN_JOBS:
                break
            jobs = self._jobs[holder]
            self._forget(holder)
            if ends_at <= now - HELD_KEEP_SECONDS:
                continue
            name = given_name(holder, secrets.token_hex(4))
            self._jobs[name], self._ends_at[name] = jobs, now + seconds
            given.append(Holding(name, worker_of(holder), dict(jobs)))
            count += len(jobs)
        return given

    def _forget(self, holder: str) -> None:
        del self._jobs[holder], self._ends_at[holder]
