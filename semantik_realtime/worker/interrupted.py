"""The jobs whose tasks a worker leaves when it ends.

In a cold stop Celery waits for no greenlet, and sends no signal for those that
it leaves. Threads are waited for, and for a child of the prefork pool the main
process sends the end.
"""

from __future__ import annotations

import atexit
import os

from celery.worker import state as worker_state

from semantik_realtime.worker.current import running_jobs
from semantik_realtime.worker.endings import WORKER_STOPPED


def end_interrupted_at_exit() -> None:
    """End, when this process does, the jobs whose tasks still run then. Once in each worker."""
    # A child that a task forks runs these functions too, if it ends by `sys.exit`.
    atexit.register(_end_interrupted, os.getpid())


def _end_interrupted(worker_pid: int) -> None:
    """Runs before the emitter's own function at exit, which sends what this one emits."""
    if os.getpid() != worker_pid:
        return
    # The broker delivers the messages of these to another worker.
    late = {str(request.id) for request in worker_state.active_requests if request.task.acks_late}
    for task_id, job in list(running_jobs.items()):
        if task_id not in late:
            job.end("job_failed", error=WORKER_STOPPED)
