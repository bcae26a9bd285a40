"""The Celery side: ``celery -A semantik_realtime.demo.tasks worker``."""

import logging
from functools import cache
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from kombu.exceptions import OperationalError

from semantik_realtime import install
from semantik_realtime.demo.indexing import Cancelled, run_job
from semantik_realtime.demo.records import Sessions, open_records
from semantik_realtime.demo.settings import DemoSettings

logger = logging.getLogger(__name__)


def configuration() -> dict[str, Any]:
    """Celery's settings. Asked for at first use, so that importing this module needs nothing."""
    # The broker may be away while tasks run, and they are not to notice: no result is stored, as
    # storing one waits for a server, and a lost connection ends no task. The worker looks for the
    # broker for ever, also when it was never there. (Celery 5.7 itself may end a worker that had
    # reserved further messages when Redis died.)
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
install(celery_app)


@cache
def _open(url: str) -> Sessions:
    """One engine per worker process; opened by its first task, so after the fork."""
    return open_records(url)


@celery_app.task(bind=True)  # type: ignore[untyped-decorator]
def index_documents(self: Task, job_id: str) -> dict[str, int]:
    """Index the documents of a job."""
    settings = DemoSettings()
    try:
        return run_job(job_id, settings, _open(settings.sqlalchemy_url))
    except Cancelled:
        # Celery's way for a task to end in a state of its own choice.
        self.update_state(state="REVOKED")
        raise Ignore from None


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
    """Let the workers drop the task if it waits; a running one sees its row instead."""
    try:
        with celery_app.connection_for_write(redis_url) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1)
            celery_app.control.revoke(job_id, connection=connection)
    except OperationalError as error:
        # The row says that the job is cancelled; that alone will stop it.
        logger.warning("demo: not revoked id=%s error=%s", job_id, type(error).__name__)
