"""Start a task as a job that has an owner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from semantik_realtime.core.topic import job_topic, name_topic, plain_id, user_topic
from semantik_realtime.worker.headers import OWNER, TOPICS
from semantik_realtime.worker.tracker import install


class Submitted(msgspec.Struct, frozen=True):
    """A job that was sent: its id, its own topic and its owner's feed."""

    id: str
    topic: str
    feed: str


def submit(
    task: Any,
    *args: Any,
    owner: str | int | UUID,
    job_id: str | UUID | None = None,
    topics: Sequence[str] = (),
    **kwargs: Any,
) -> Submitted:
    """Send a Celery task with ``args`` and ``kwargs``, and make ``owner`` its owner.

    If another user's job has the id, the task runs, and its events are in the
    owner's feed only. When it returns, the owner may watch the job; if the backend does not
    answer within ``flush_seconds``, as soon as it does. Waits for broker and
    backend: call it from a thread, not from a coroutine.

    Raises:
        TopicError: no topic can have the id of the owner or of the job, or one of ``topics`` is
            no topic; nothing was sent.
        kombu.exceptions.OperationalError: the broker does not answer; nothing was sent.
    """
    feed = user_topic(owner)
    headers = {OWNER: plain_id(owner), TOPICS: [name_topic(topic) for topic in topics]}
    task_id = None if job_id is None else plain_id(job_id)
    if task_id is not None:
        job_topic(task_id)
    tracker = install()
    sent = task.apply_async(args, kwargs, task_id=task_id, headers=headers)
    tracker.flush()
    return Submitted(sent.id, job_topic(sent.id), feed)
