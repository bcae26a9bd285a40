"""What a task's message, or Celery's request, states about the job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semantik_realtime.core.topic import check_topic, job_topic, user_topic
from semantik_realtime.errors import InvalidInput
from semantik_realtime.worker.job import Job, JobMeta
from semantik_realtime.worker.values import note_misuse

OWNER, TOPICS = "realtime_owner", "realtime_topics"
"""Headers that the application sets: a user id, and further topics (list, or comma-separated)."""
QUEUED_AT, ATTEMPT = "realtime_queued_at", "realtime_attempt"
"""Headers that this package sets: when the job was published first, and its attempt so far."""
MAX_TOPICS = 20
CELERYS_OWN = "celery."
"""Celery's own tasks (unlocking chords, cleaning results) are not jobs."""


def is_job(task_name: Any) -> bool:
    """Return True if tasks with this name are mirrored."""
    return not str(task_name).startswith(CELERYS_OWN)


def is_job_message(task_name: Any, headers: Any) -> bool:
    """Return True if a message with these headers is of a job."""
    # Messages of Celery's first protocol have no id in their headers.
    return isinstance(headers, dict) and "id" in headers and is_job(task_name)


def read_job_meta(message: Any, *, id: str | None = None, name: str | None = None) -> JobMeta:
    """Return what the headers of a task's message, or Celery's request, state about the job.

    An owner or a topic outside its grammar is left out.

    Raises:
        TopicError: the task's id cannot be the name of a topic.
    """
    job_id = id or message.get("id")
    job_topic(job_id)
    owner = _header(message, OWNER)
    if owner is not None:
        owner = _checked("owner", user_topic, str(owner), job_id)
    topics = _header(message, TOPICS)
    if isinstance(topics, str):
        topics = [topic.strip() for topic in topics.split(",")]
    elif not isinstance(topics, list | tuple):
        topics = []
    checked = [_checked("topic", check_topic, topic, job_id) for topic in topics[:MAX_TOPICS]]
    queued_at = _header(message, QUEUED_AT)
    return JobMeta(
        id=job_id,
        name=name or message.get("task"),
        owner=owner,
        topics=tuple(topic for topic in checked if topic is not None),
        queued_at=queued_at if isinstance(queued_at, str) else None,
    )


def count_attempts(message: Any) -> int:
    """Return how many attempts there were, as far as the message knows.

    Celery does not count redeliveries; our header does, up to the last retry.
    """
    counts = (message.get("retries"), _header(message, ATTEMPT))
    return max((count for count in counts if isinstance(count, int)), default=0)


def headers_of(job: Job) -> dict[str, Any]:
    """Return the headers of a further message of ``job``: a retry, or a replacement."""
    headers = {
        OWNER: job.meta.owner,
        TOPICS: list(job.meta.topics) or None,
        QUEUED_AT: job.meta.queued_at,
        ATTEMPT: job.attempt,
    }
    return {name: value for name, value in headers.items() if value is not None}


def _header(message: Any, name: str) -> Any:
    value = message.get(name)
    # The request of a task that was applied without a message has its headers in one member.
    return (message.get("headers") or {}).get(name) if value is None else value


def _checked(what: str, check: Callable[[str], str], value: str, job_id: str) -> str | None:
    try:
        check(value)
    except InvalidInput as error:
        note_misuse(f"{what} left out", job_id, str(error))
        return None
    return value
