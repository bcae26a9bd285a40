"""The Celery application: ``celery -A semantik_realtime.demo.tasks worker``."""

import logging
from functools import cache
from threading import Thread
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import Celery, Task, signals
from celery.exceptions import Ignore
from kombu.exceptions import OperationalError

from semantik_realtime import install
from semantik_realtime.demo.abandoned import end_abandoned_jobs, end_killed_job
from semantik_realtime.demo.indexing import Cancelled, run_job
from semantik_realtime.demo.records import Sessions, open_records
from semantik_realtime.demo.settings import DemoSettings

logger = logging.getLogger(__name__)


def configuration() -> dict[str, Any]:
    """Return Celery's settings; called at first use, so that importing needs no environment."""
    # Tasks go on while the broker is away: no result is stored, because that would wait for the
    # broker, and a lost connection cancels no task. The worker reconnects without end, also at its
    # start. (Celery 5.7 itself may end a worker that had reserved more messages when Redis died.)
    return {
        "broker_url": DemoSettings().redis_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {"socket_connect_timeout": 3, "socket_timeout": 5},
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_prefetch_multiplier": 1,
        "task_publish_retry_policy": {"max_retries": 1},
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
    }


celery_app = Celery("semantik_realtime.demo")
celery_app.add_defaults(configuration)
tracker = install(celery_app)


@cache
def _sessions(url: str) -> Sessions:
    """Return the engine of this process: opened by its first task, so after the fork."""
    return open_records(url)


@celery_app.task(bind=True)  # type: ignore[untyped-decorator]
def index_documents(self: Task, job_id: str) -> dict[str, int]:
    """Index the documents of a job."""
    settings = DemoSettings()
    try:
        return run_job(job_id, settings, _sessions(settings.sqlalchemy_url))
    except Cancelled:
        # Ignore keeps Celery from overwriting the state with SUCCESS or FAILURE.
        self.update_state(state="REVOKED")
        raise Ignore from None


@signals.task_failure.connect  # type: ignore[untyped-decorator]
def record_killed_job(task_id: str, exception: BaseException, **_: Any) -> None:
    """In the worker's main process: the process of a task was killed and cannot record its end."""
    if isinstance(exception, WorkerLostError):
        end_killed_job(task_id, exception, DemoSettings())


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def look_for_abandoned_jobs(**_: Any) -> None:
    """End the jobs of a worker that was killed before this one started."""
    runtime = tracker.runtime()
    if runtime is not None:
        Thread(target=end_abandoned_jobs, args=(DemoSettings(), runtime), daemon=True).start()


def start_index(job_id: str, owner: str, redis_url: str) -> None:
    """Send the task to the workers.

    Raises:
        kombu.exceptions.OperationalError: The broker does not answer.
    """
    with celery_app.connection_for_write(redis_url) as connection:
        index_documents.apply_async(
            args=[job_id],
            task_id=job_id,
            headers={"realtime_owner": owner},
            connection=connection,
        )


def cancel_index(job_id: str, redis_url: str) -> None:
    """Revoke the task if it is still queued; a running one sees the request in its row."""
    try:
        with celery_app.connection_for_write(redis_url) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1)
            celery_app.control.revoke(job_id, connection=connection)
    except OperationalError as error:
        # The row of the job already has the request, and the task stops by that alone.
        logger.warning("demo: task not revoked job=%s error=%s", job_id, type(error).__name__)
