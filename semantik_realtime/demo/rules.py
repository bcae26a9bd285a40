"""What the realtime plugin asks this application."""

from typing import Any

import pluggy
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from semantik_realtime.demo.records import Job, Sessions

hookimpl = pluggy.HookimplMarker("semantik_realtime")

RECALLED_JOBS = 50


class Rules:
    """Jobs belong to the user who started them; a feed to the user it is named after."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @hookimpl
    async def authorize(self, user: str, topic: str, owner: str | None) -> bool | None:
        kind, _, name = topic.partition(":")
        if kind == "user":
            return name == user
        if kind != "job":
            return None
        job = await run_in_threadpool(self._job, name)
        return None if job is None else str(job.user_id) == user

    @hookimpl
    async def recall(self, topic: str) -> dict[str, Any] | None:
        return await run_in_threadpool(self._recall, topic)

    def _job(self, job_id: str) -> Job | None:
        with self._sessions() as session:
            return session.get(Job, job_id)

    def _recall(self, topic: str) -> dict[str, Any] | None:
        kind, _, name = topic.partition(":")
        if kind == "job":
            job = self._job(name)
            return None if job is None else {job.id: job.state()}
        if kind == "user" and name.isdecimal():
            with self._sessions() as session:
                jobs = session.scalars(
                    select(Job)
                    .where(Job.user_id == int(name))
                    .order_by(Job.queued_at.desc())
                    .limit(RECALLED_JOBS)
                )
                return {job.id: job.state() for job in jobs}
        return None
