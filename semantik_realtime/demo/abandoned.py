"""Jobs whose process was killed: nobody but another process can record how they ended."""

import asyncio
import logging
import time

from sqlalchemy import select

from semantik_realtime.clock import now_text
from semantik_realtime.demo.records import LOST_AFTER_SECONDS, Job, open_records
from semantik_realtime.demo.settings import DemoSettings
from semantik_realtime.errors import RealtimeError
from semantik_realtime.runtime import Runtime

logger = logging.getLogger(__name__)


def end_killed_job(job_id: str, error: BaseException, settings: DemoSettings) -> None:
    """Record that the process of a job was killed. Celery's failure is published already."""
    # Opened for this alone: the worker forks, and a child must not share a connection.
    sessions = open_records(settings.sqlalchemy_url)
    try:
        with sessions.begin() as session:
            job = session.get(Job, job_id)
            if job is not None and job.status == "running":
                reason = {"type": type(error).__name__, "message": str(error)}
                job.update(status="failed", error=reason, ended_at=now_text(), current_file=None)
    finally:
        sessions.kw["bind"].dispose()


def end_abandoned_jobs(settings: DemoSettings, runtime: Runtime) -> None:
    """Record and publish the end of each job that nobody has worked on for LOST_AFTER_SECONDS."""
    time.sleep(LOST_AFTER_SECONDS + 1)
    sessions = open_records(settings.sqlalchemy_url)
    try:
        with sessions.begin() as session:
            running = session.scalars(select(Job).where(Job.status == "running"))
            lost = [job for job in running if job.state()["status"] == "lost"]
            for job in lost:
                job.update(status="lost", ended_at=now_text(), current_file=None)
    finally:
        sessions.kw["bind"].dispose()
    for job in lost:
        view, owner = job.view(), str(job.user_id)
        logger.warning("demo: job lost job=%s", job.id)
        try:
            asyncio.run(
                runtime.publish(
                    view["topic"], "job_lost", state=view["state"], owner=owner, also=[view["feed"]]
                )
            )
        except RealtimeError as error:
            logger.warning("demo: loss not published job=%s error=%s", job.id, error.code)
