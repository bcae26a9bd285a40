"""The hooks that the realtime plugin calls: who may watch a topic, and the record of a topic."""

from typing import Any

import pluggy
from sqlalchemy import select
from sqlalchemy.orm import defer
from starlette.concurrency import run_in_threadpool

from semantik_realtime.core.lifecycle import END_STATUSES
from semantik_realtime.demo.records import MAX_ID, Job, Sessions

hookimpl = pluggy.HookimplMarker("semantik_realtime")

MAX_RECALLED_JOBS = 50
"""The number of jobs that the page lists."""


class RealtimeHooks:
    """A job may be watched by the user who started it, a feed by the user in its name.

    The hooks read only the database, so they work while the event store is away.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @hookimpl
    async def authorize(self, user: str, topic: str, owner: str | None) -> bool | None:
        kind, _, name = topic.partition(":")
        if kind == "user":
            return name == user
        if kind != "job":
            return None
        job_owner = await run_in_threadpool(self._owner_of_job, name)
        return None if job_owner is None else str(job_owner) == user

    @hookimpl
    async def recall(self, topic: str) -> dict[str, Any] | None:
        return await run_in_threadpool(self._recall, topic)

    def _owner_of_job(self, job_id: str) -> int | None:
        with self._sessions() as session:
            return session.scalar(select(Job.user_id).where(Job.id == job_id))

    def _recall(self, topic: str) -> dict[str, Any] | None:
        kind, _, name = topic.partition(":")
        if kind == "job":
            jobs = select(Job).where(Job.id == name)
        elif kind == "user" and name.isdecimal() and len(name) < 20 and int(name) <= MAX_ID:
            # Running jobs first: otherwise many newer jobs would push them over the limit.
            jobs = (
                select(Job)
                .where(Job.user_id == int(name))
                .order_by(Job.status.in_(END_STATUSES), Job.queued_at.desc())
                .limit(MAX_RECALLED_JOBS)
            )
        else:
            return None
        # Both columns may be long, and `Job.state` does not read them.
        query = jobs.options(defer(Job.document_ids), defer(Job.failures))
        with self._sessions() as session:
            states = {job.id: job.state() for job in session.scalars(query)}
        return states if states or kind == "user" else None
