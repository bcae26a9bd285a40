"""What the realtime plugin asks this application."""

from typing import Any

import pluggy
from sqlalchemy import select
from sqlalchemy.orm import defer
from starlette.concurrency import run_in_threadpool

from semantik_realtime.demo.records import ENDED, Job, Sessions

hookimpl = pluggy.HookimplMarker("semantik_realtime")

RECALLED_JOBS = 50
"""As many as the page shows."""


class Rules:
    """Jobs belong to the user who started them; a feed to the user it is named after.

    All answers come from the database alone, so they are as good while the
    event store is away.
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
        job_owner = await run_in_threadpool(self._owner, name)
        return None if job_owner is None else str(job_owner) == user

    @hookimpl
    async def recall(self, topic: str) -> dict[str, Any] | None:
        return await run_in_threadpool(self._recall, topic)

    def _owner(self, job_id: str) -> int | None:
        with self._sessions() as session:
            return session.scalar(select(Job.user_id).where(Job.id == job_id))

    def _recall(self, topic: str) -> dict[str, Any] | None:
        kind, _, name = topic.partition(":")
        if kind == "job":
            chosen = select(Job).where(Job.id == name)
        elif kind == "user" and name.isdecimal():
            # What still runs first: it must not fall out behind many newer ones.
            chosen = (
                select(Job)
                .where(Job.user_id == int(name))
                .order_by(Job.status.in_(ENDED), Job.queued_at.desc())
                .limit(RECALLED_JOBS)
            )
        else:
            return None
        # A state needs neither; both may be long.
        slim = chosen.options(defer(Job.document_ids), defer(Job.failures))
        with self._sessions() as session:
            states = {job.id: job.state() for job in session.scalars(slim)}
        return states if states or kind == "user" else None
