"""What a task's message states about its job, and the place of the task in a workflow: added as
the message is published.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from semantik_realtime.clock import now_text
from semantik_realtime.core.workflow import OPEN
from semantik_realtime.forks import on_fork
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.headers import (
    MEMBER,
    QUEUED_AT,
    headers_of,
    read_job_meta,
    workflow_of,
)
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.members import tallies

LAST = "realtime_last"
"""Header of the application: its job ends when this task has ended."""
MAX_REMEMBERED = 1000
"""Jobs of the application whose first state a process remembers to have sent."""

MAX_NUMBERED = 1000
"""Tasks that a process has numbered and remembers: Celery may publish one a second time."""

_begun: OrderedDict[str, None] = OrderedDict()
"""Those jobs, oldest first."""
_numbered: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
"""The places of those tasks by workflow and task id, oldest first."""
on_fork(after_in_child=_begun.clear)
on_fork(after_in_child=_numbered.clear)


def forget_jobs() -> None:
    """Forget the jobs and workflows that this process has begun, for tests: ids come again."""
    _begun.clear()
    _numbered.clear()
    tallies.clear()


def complete_headers(
    runtime: Runtime, headers: dict[str, Any], body: Any, task_id: str, job: Job | None
) -> None:
    """Add what the message of a task states about its job, beside what it has inherited.

    ``job`` is the one whose task publishes it, if there is one.
    """
    if job is None or job.id != task_id:
        headers.setdefault(QUEUED_AT, now_text())
        give_place(runtime, headers, body, job, task_id)
    else:
        headers.update(headers_of(job))


def give_place(
    runtime: Runtime, headers: dict[str, Any], body: Any, job: Job | None, task_id: str
) -> None:
    """Give a task that is published its place in the workflow that its headers name.

    ``job`` is the one whose task publishes it; a retry or a replacement of that one is not given a
    place here, because it keeps its own (`headers_of`).
    """
    if job is not None:
        _keep_place(body, job)
    workflow = workflow_of(headers)
    if workflow is None or headers.get(MEMBER) is not None or workflow == task_id:
        return
    # In Celery's first protocol the id is not among the headers.
    meta = read_job_meta(headers, id=task_id)
    if meta is None:
        return
    if job is None:
        _begin(runtime, workflow, meta)
    place = _numbered.get((workflow, task_id))
    if place is None:
        place = tallies.number(runtime, workflow, meta.owner)
        if headers.get(LAST):
            place["ends"] = True
        _numbered[workflow, task_id] = place
        while len(_numbered) > MAX_NUMBERED:
            _numbered.popitem(last=False)
    headers[MEMBER] = dict(place)


def begin_workflow(runtime: Runtime, workflow: str, meta: JobMeta, state: dict[str, Any]) -> Job:
    """Send that a workflow waits for its first task. Refused, without effect, if it has begun."""
    whole = JobMeta(workflow, meta.name, meta.owner, meta.topics, meta.queued_at)
    job = Job(runtime, whole, 0, {"workflow": state})
    job.queue()
    return job


def _begin(runtime: Runtime, workflow: str, meta: JobMeta) -> None:
    if workflow in _begun:
        return
    _begun[workflow] = None
    while len(_begun) > MAX_REMEMBERED:
        _begun.popitem(last=False)
    whole = JobMeta(workflow, None, meta.owner, meta.topics, meta.queued_at)
    begin_workflow(runtime, workflow, whole, {"ends": OPEN})


def _keep_place(body: Any, job: Job) -> None:
    """Give the task that will end a replaced one its place and the number of its attempts: Celery
    publishes it later, from another task, as the last step of a chain or the body of a chord.
    """
    embedded = body[2] if isinstance(body, list | tuple) and len(body) == 3 else body
    if not isinstance(embedded, dict):
        return
    # In Celery's first protocol the next step is a callback.
    names = ("chain", "chord", "callbacks") if embedded is body else ("chain", "chord")
    for signature in _signatures([embedded.get(name) for name in names]):
        options = signature.get("options")
        if isinstance(options, dict) and options.get("task_id") == job.id:
            options["headers"] = {**(options.get("headers") or {}), **headers_of(job)}


def _signatures(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all signatures in the rest of a canvas that a message carries."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _signatures(each)
    elif isinstance(value, dict):
        yield value
        kwargs, options = value.get("kwargs"), value.get("options")
        if isinstance(kwargs, dict) and value.get("subtask_type") in ("chain", "group", "chord"):
            yield from _signatures([kwargs.get(name) for name in ("tasks", "header", "body")])
        if isinstance(options, dict):
            yield from _signatures([options.get(name) for name in ("chain", "chord", "link")])
