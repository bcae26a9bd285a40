"""A replacement for the helper with which a task sends updates of a job of the application."""

from __future__ import annotations

import asyncio
import functools
from types import TracebackType

from semantik_realtime.migrate.updates import JobUpdates
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.current import current_job
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.tracker import install


@functools.cache
def _own_runtime() -> Runtime:
    return Runtime()


class TaskUpdates(JobUpdates):
    """`JobUpdates` from a Celery task, through the runtime of its process::

        async with TaskUpdates(operation_id) as updates:
            updates.set_user_id(user_id)
            await updates.send_update("file_completed", {"file": "a.pdf"})

    Also without ``async`` and ``await``. At the end of the block it waits at
    most ``flush_seconds`` for the backend. If ``job_id`` is the id of the task
    itself, the updates are the task's own, and how it ends is reported by the
    mirror.
    """

    def __init__(
        self,
        job_id: str,
        *,
        owner: object = None,
        new_attempt: bool = False,
        runtime: Runtime | None = None,
    ) -> None:
        # With the mirror switched off the tracker has no runtime.
        runtime = runtime or install().runtime() or _own_runtime()
        super().__init__(runtime, job_id, owner=owner, new_attempt=new_attempt)

    def current(self) -> Job:
        running = current_job()
        return running if running is not None and running.id == self._id else super().current()

    def close(self) -> bool:
        """Flush, which the end of the block does too."""
        return self.flush()

    def __enter__(self) -> TaskUpdates:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()

    async def __aenter__(self) -> TaskUpdates:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.flush)
