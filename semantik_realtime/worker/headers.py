"""What a task's message, or Celery's request, states about the job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from semantik_realtime.core.topic import job_topic, name_topic, plain_id, user_topic
from semantik_realtime.errors import InvalidInput
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.members import Member, is_place, read_member
from semantik_realtime.worker.values import due_time, note_misuse

logger = logging.getLogger(__name__)

OWNER, TOPICS = "realtime_owner", "realtime_topics"
"""Headers, or stamps, that the application sets: a user id, and further topics (list, or
comma-separated). What a task publishes inherits both (`inherit`)."""
WORKFLOW = "realtime_job"
"""Header that makes a task a member of the job with this id. Inherited, too."""
MEMBER = "realtime_member"
"""Header that this package sets: the task's place in that job. Never inherited."""
QUEUED_AT, ATTEMPT = "realtime_queued_at", "realtime_attempt"
"""Headers that this package sets: when the job was published first, and its attempt so far."""
_OF_JOB = frozenset({OWNER, TOPICS, WORKFLOW, MEMBER, QUEUED_AT})
MAX_TOPICS = 20
"""Further topics of a job; more are left out."""
CELERYS_OWN = "celery."
"""Celery's own tasks (unlocking chords, cleaning results) are not jobs."""
CELERYS_WORK = frozenset(f"celery.{name}" for name in ("map", "starmap", "chunks", "accumulate"))
"""Those that run the application's code, or end a task that was replaced, are."""

_ownerless: set[str] = set()
"""The tasks whose jobs had no owner, as logged by this process."""


def is_job(task_name: Any) -> bool:
    """Return True if tasks with this name are mirrored."""
    name = str(task_name)
    return not name.startswith(CELERYS_OWN) or name in CELERYS_WORK


def job_message(task_name: Any, headers: Any, body: Any) -> Mapping[str, Any] | None:
    """Return what a message states about its task; None if that is no job.

    In Celery's second protocol these are the headers. In the first one
    (``task_protocol = 1``) id, name and retries are in the body, and the
    headers are the application's alone.
    """
    if not isinstance(headers, dict) or not is_job(task_name):
        return None
    if "id" in headers:
        return headers
    if isinstance(body, dict) and "id" in body:
        return headers | {name: body.get(name) for name in ("id", "task", "retries", "eta")}
    return None


def read_job_meta(message: Any, *, id: Any = None, name: str | None = None) -> JobMeta | None:
    """Return what the headers of a task's message, or Celery's request, state about the job.

    An owner or a topic that no topic can have is left out; None if that is the
    task's id, because its job can have no topic. Each is noted, with the name
    of the header.
    """
    task_id = message.get("id") if id is None else id
    if _checked("task_id", job_topic, task_id, task_id) is None:
        return None
    job_id = task_id if task_id.__class__ is str else plain_id(task_id)
    given = _read_headers(message)
    owner = given.get(OWNER)
    if owner is not None and _checked(OWNER, user_topic, owner, job_id) is None:
        owner = None
    topics = given.get(TOPICS)
    if isinstance(topics, str):
        topics = [topic.strip() for topic in topics.split(",")]
    elif topics is None:
        topics = ()
    elif not isinstance(topics, list | tuple):
        note_misuse(f"{TOPICS} refused, it is no list of topics", job_id, repr(topics))
        topics = ()
    if len(topics) > MAX_TOPICS:
        note_misuse(f"{TOPICS} cut, it has more than {MAX_TOPICS}", job_id, repr(topics))
    checked = [_checked(TOPICS, name_topic, topic, job_id) for topic in topics[:MAX_TOPICS]]
    queued_at = given.get(QUEUED_AT)
    return JobMeta(
        id=job_id,
        name=name or message.get("task"),
        owner=None if owner is None else plain_id(owner),
        topics=tuple(topic for topic in checked if topic is not None),
        queued_at=queued_at if isinstance(queued_at, str) else None,
        due_at=due_time(message.get("eta")),
        is_redelivered=bool((message.get("delivery_info") or {}).get("redelivered")),
        member=_read_member(given, job_id) if given.get(WORKFLOW) is not None else None,
    )


def read_header(message: Any, name: str) -> Any:
    """Return a header, or stamp, of a message or request; None if it is missing."""
    value = message.get(name)
    if value is not None:
        return value
    # The request of a task that was applied without a message has its headers in one member.
    headers = message.get("headers")
    if headers:
        value = headers.get(name)
    stamps = message.get("stamps")
    if value is None and stamps:
        value = stamps.get(name)
        # Celery makes lists of the stamps of a canvas.
        if name in (OWNER, WORKFLOW) and isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
    return value


def workflow_of(message: Any) -> str | None:
    """Return the id of the job whose member a task is, by the headers of its message."""
    value = read_header(message, WORKFLOW)
    if value is None or _checked(WORKFLOW, job_topic, value, str(message.get("id"))) is None:
        return None
    return plain_id(value)


def _read_headers(message: Any) -> dict[str, Any]:
    """Return those of a job that a message or request has, by name; see `read_header`."""
    # Celery's request has `get` and nothing else of a dict.
    if not isinstance(message, dict) or message.get("stamps"):
        return {name: read_header(message, name) for name in _OF_JOB}
    found: dict[str, Any] = {name: message[name] for name in _OF_JOB if name in message}
    headers: Any = message.get("headers")
    for name in _OF_JOB.intersection(headers) if headers else ():
        if found.get(name) is None:
            found[name] = headers[name]
    return found


def _read_member(given: Mapping[str, Any], job_id: str) -> Member | None:
    workflow, place = workflow_of({**given, "id": job_id}), given.get(MEMBER)
    # A job of one task is not its own member. The last one of a canvas has a place.
    if workflow is None or (workflow == job_id and not is_place(place)):
        return None
    return read_member(workflow, place, job_id)


def inherit(headers: dict[str, Any], parent: Any) -> None:
    """Give a message the owner, the topics and the workflow of ``parent``, the message or request
    of the task that publishes it, unless it has its own. A header that is None is its own.
    """
    for name in (OWNER, TOPICS, WORKFLOW):
        if name not in headers and name not in (headers.get("stamps") or {}):
            value = read_header(parent, name)
            if value is not None:
                headers[name] = value


def note_ownerless(message: Any) -> None:
    """Log that the jobs of a task have no owner, once for each task that the worker knows."""
    name = message.get("task")
    if name in _ownerless:
        return
    # A header that is None says that nobody shall watch it.
    is_ownerless = OWNER not in message and read_header(message, OWNER) is None
    if is_job(name) and is_ownerless:
        _ownerless.add(name)
        logger.warning(
            "tracker: job without owner task=%s, nobody may watch it unless your authorize allows "
            "it: send the task with the header %s (logged once a task)",
            name,
            OWNER,
        )


def count_attempts(message: Any) -> int:
    """Return how many attempts there were, as far as the message knows.

    Celery does not count redeliveries; our header does, up to the last retry.
    """
    retries, counted = message.get("retries"), read_header(message, ATTEMPT)
    retries = retries if isinstance(retries, int) else 0
    return max(retries, counted) if isinstance(counted, int) else retries


def headers_of(job: Job) -> dict[str, Any]:
    """Return the headers of a further message of ``job``: a retry, or a replacement."""
    headers: dict[str, Any] = {
        OWNER: job.meta.owner,
        TOPICS: list(job.meta.topics) or None,
        QUEUED_AT: job.meta.queued_at,
        ATTEMPT: job.attempt,
    }
    if job.meta.member is not None:
        headers |= {WORKFLOW: job.meta.member.workflow, MEMBER: job.meta.member.place}
    return {name: value for name, value in headers.items() if value is not None}


def _checked(header: str, check: Callable[[Any], str], value: Any, job_id: Any) -> str | None:
    """Return the topic of ``value``. None if it has none; noted once for each header and reason."""
    try:
        return check(value)
    except InvalidInput as error:
        # Of a topic's name the reason is always the same, and the message has the value.
        reason = "not a topic" if header == TOPICS else str(error)
        note_misuse(f"{header} refused, {reason}", str(job_id), repr(value))
        return None
