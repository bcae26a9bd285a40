"""Start a task, or a workflow of tasks, as a job that has an owner."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.core.topic import job_topic, name_topic, plain_id, user_topic
from semantik_realtime.errors import InvalidInput
from semantik_realtime.worker.canvas import is_canvas, plan_canvas
from semantik_realtime.worker.headers import MEMBER, OWNER, TOPICS, WORKFLOW
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.places import LAST, begin_workflow
from semantik_realtime.worker.tracker import TaskTracker, install
from semantik_realtime.worker.values import describe_error


class Submitted(msgspec.Struct, frozen=True):
    """A job that was sent: its id, its own topic and its owner's feed."""

    id: str
    topic: str
    feed: str
    task_id: str
    """Celery's id: of the task, of the group, or of the last task of a chain or chord."""
    token: str | None = None
    """Allows whoever has it to watch the job for 15 minutes, while it belongs to its owner
    (`semantik_realtime.runtime.Runtime.token_for`); None: SEMANTIK_REALTIME_TOPIC_SECRETS is
    unset. It is in no repr, and so in no log."""

    def __repr__(self) -> str:
        return f"Submitted(id={self.id!r}, topic={self.topic!r}, task_id={self.task_id!r})"


def submit(
    task: Any,
    *args: Any,
    owner: str | int | UUID,
    job_id: str | UUID | None = None,
    topics: Sequence[str] = (),
    member_of: str | int | UUID | None = None,
    is_last: bool = False,
    **kwargs: Any,
) -> Submitted:
    """Send a Celery task, or a canvas, with ``args`` and ``kwargs``, and make ``owner`` its owner.

    A canvas (chain, group, chord or chunks, nested in any way) is one job: its topic has a key for
    each task, and the id's own state is that of the whole (docs/workflows.md). With ``member_of``
    a task belongs to the job with that id, together with others; the job ends when the application
    publishes its end, or when the task that is sent with ``is_last`` has ended.

    If another user's job has the id, the task runs, and its events are in the
    owner's feed only. When it returns, the owner may watch the job; if the backend does not
    answer within ``flush_seconds``, as soon as it does. Waits for broker and
    backend: call it from a thread, not from a coroutine.

    Raises:
        TopicError: no topic can have the id of the owner or of the job, or one of ``topics`` is
            no topic; nothing was sent.
        ConfigError: a secret of SEMANTIK_REALTIME_TOPIC_SECRETS is too short; nothing was sent.
        InvalidInput: a canvas has no tasks, or more than 100,000, or is to be ``member_of``
            another job; nothing was sent.
        kombu.exceptions.OperationalError: the broker does not answer. Of a task nothing was sent;
            of a canvas a part may have been, and its job has failed.
    """
    user_topic(owner)
    headers = {OWNER: plain_id(owner), TOPICS: [name_topic(topic) for topic in topics]}
    given = None if job_id is None else plain_id(job_id)
    if given is not None:
        job_topic(given)
    tracker = install()
    if (runtime := tracker.runtime()) is not None:
        # Before anything is sent: `_submitted` signs with them.
        _ = runtime.settings.topic_secret_list
    if is_canvas(task):
        if member_of is not None:
            raise InvalidInput("a canvas is a job of its own: member_of is for a single task")
        return _submit_canvas(tracker, task, args, kwargs, given or str(uuid.uuid4()), headers)
    whole = None if member_of is None else plain_id(member_of)
    if whole is None:
        # A task that submits another one has not the other one as its member.
        sent = task.apply_async(args, kwargs, task_id=given, headers={**headers, WORKFLOW: None})
    else:
        job_topic(whole)
        last = {LAST: True} if is_last else {}
        sent = task.apply_async(
            args, kwargs, task_id=given, headers={**headers, WORKFLOW: whole, **last}
        )
    tracker.flush()
    return _submitted(tracker, whole or sent.id, plain_id(owner), sent.id)


def _submitted(tracker: TaskTracker, job: str, owner: str, task_id: str) -> Submitted:
    topic, runtime = job_topic(job), tracker.runtime()
    token = None
    if runtime is not None and runtime.settings.topic_secret_list:
        token = runtime.token_for(topic, owner=owner)
    return Submitted(job, topic, user_topic(owner), task_id, token)


def _submit_canvas(
    tracker: TaskTracker,
    canvas: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    job_id: str,
    headers: dict[str, Any],
) -> Submitted:
    plan = plan_canvas(canvas)
    plan.place({**headers, WORKFLOW: job_id}, MEMBER)
    owner, topics = headers[OWNER], tuple(headers[TOPICS])
    runtime = tracker.runtime()
    job = None
    if runtime is not None:
        meta = JobMeta(job_id, plan.name, owner, topics, now_text())
        job = begin_workflow(runtime, job_id, meta, plan.as_state())
    try:
        sent = plan.canvas.apply_async(args, kwargs)
    except Exception as error:
        if job is not None:
            job.end("job_failed", error=describe_error(error))
        raise
    tracker.flush()
    return _submitted(tracker, job_id, owner, str(sent.id))
