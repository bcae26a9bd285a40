"""The tasks that never run, because one before them in a chain or a chord has failed.

Celery stores a failure for them and sends no signal; nor does it for the body of a chord that it
cannot publish.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery._state import get_current_task

from semantik_realtime.config import Settings
from semantik_realtime.core.tally import numbers_of
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.headers import (
    MEMBER,
    OWNER,
    TOPICS,
    WORKFLOW,
    inherit,
    is_job,
    read_header,
    read_job_meta,
    workflow_of,
)
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.receivers import guarded
from semantik_realtime.worker.selection import mirrors_of
from semantik_realtime.worker.values import describe_error, make_error

INHERITED = (OWNER, TOPICS, WORKFLOW)
CHORD_UNLOCK = "celery.chord_unlock"
UNPUBLISHED = "Callback error"
"""How Celery's error of a chord begins whose header has succeeded."""
READ = (OWNER, TOPICS, WORKFLOW, MEMBER, "stamps")
"""What is read of the headers of such a task."""
MAX_TASKS = 1000
"""Tasks of a workflow that are failed with one of its steps."""
MAX_DEPTH = 20
"""How deep groups, chords and chains may be nested."""
UPSTREAM = "Upstream"
"""The type of their error."""


def whole(received: Any) -> dict[str, Any]:
    """Return all that a received message states; the workflow is in its body.

    Args:
        received: `celery.worker.request.Request`.
    """
    try:
        body = received.message.payload
        embedded = body[2] if isinstance(body, list | tuple) else body
        return {**received.request_dict, **embedded}
    except Exception:
        # Not decoded before, it may be undecodable.
        return dict(received.request_dict)


def end_downstream(
    runtime: Runtime | None,
    request: Any,
    task_id: str,
    name: str,
    error: Mapping[str, str] | None,
) -> None:
    """Fail the jobs that never run because a task has failed (``error``) or was cancelled."""
    if runtime is None or not (request.get("chain") or request.get("chord")):
        return
    skipped = None
    if workflow_of(request) is not None:
        # The whole counts those that do not run by the place of the member, except for one that
        # was replaced by what has failed, and has a place of its own.
        place = read_header(request, MEMBER)
        skipped = numbers_of(place.get("skips") if isinstance(place, Mapping) else None)
    metas = never_run(request, runtime.settings)
    for meta in metas if skipped is None else _replaced(metas, skipped):
        # One that was replaced has begun; its attempt is the newest.
        attempt = 0 if skipped is None else None
        reason = upstream_error(name, str(task_id), error)
        Job(runtime, meta, attempt).end("job_failed", error=reason)


def watch_chords(task: Any, runtime: Callable[[], Runtime | None], failures: Counter[str]) -> None:
    """Fail the body of a chord that Celery cannot publish; done once for each result backend.

    Celery calls a method of the backend then, in the process that runs the last task of the
    header, or ``celery.chord_unlock``. It sends no signal.

    Args:
        task: is about to run: a task of a chord's header, or `CHORD_UNLOCK`.
        runtime: of the tracker that was asked last.
        failures: counts what goes wrong, which Celery does not see.
    """
    backend = task.backend
    original: Any = getattr(backend, "chord_error_from_stack", None)
    if original is None:
        return
    if hasattr(original, "runtime"):
        original.runtime = runtime
        return
    fail_body = guarded(_fail_body, failures)

    @functools.wraps(original)
    def chord_error_from_stack(*args: Any, **kwargs: Any) -> Any:
        fail_body(watched.runtime(), *args, **kwargs)
        return original(*args, **kwargs)

    watched: Any = chord_error_from_stack
    watched.runtime = runtime
    backend.chord_error_from_stack = watched


def _fail_body(
    runtime: Runtime | None, callback: Any = None, exc: BaseException | None = None, **_: Any
) -> None:
    # Otherwise a task of the header has failed, which its own end has said.
    if runtime is None or not str(exc).startswith(UNPUBLISHED):
        return
    task = get_current_task()
    request = {} if task is None else {name: read_header(task.request, name) for name in INHERITED}
    metas = never_run({**request, "chord": callback}, runtime.settings)
    if any(meta.member is not None for meta in metas):
        metas = list(_replaced(metas, 0))
    for meta in metas:
        Job(runtime, meta, 0).end("job_failed", error=describe_error(exc))


def _replaced(metas: list[JobMeta], skipped: int) -> Iterator[JobMeta]:
    """Yield those of ``metas`` that are not skipped, neither by the set nor by one another."""
    places = [(meta.member.number, meta) for meta in metas if meta.member and not meta.member.giver]
    for number, meta in sorted(places, key=lambda place: place[0]):
        if meta.member is not None and not skipped >> number & 1:
            skipped |= numbers_of(meta.member.place.get("skips"))
            yield meta


def never_run(request: Any, settings: Settings) -> list[JobMeta]:
    """Return the jobs of the tasks that wait for a task that failed.

    Args:
        request: of the failed task, as Celery's request or as the members of its message. Its
            ``chain`` has the next steps (the last one first), its ``chord`` the body.
        settings: say which tasks are mirrored.
    """
    found: dict[str, JobMeta] = {}
    steps = request.get("chain")
    signatures = [*(steps if isinstance(steps, list | tuple) else ()), request.get("chord")]
    for task_id, name, headers in _tasks(signatures, MAX_DEPTH):
        if len(found) >= MAX_TASKS:
            break
        if task_id in found or task_id == request.get("id") or not is_job(name):
            continue
        message = dict(headers)
        if mirrors_of(name, message, settings) is None:
            continue
        inherit(message, request)
        # What Celery's canvas has of its own must not be read as a job's.
        known = {key: message[key] for key in READ if key in message}
        meta = read_job_meta(known, id=task_id, name=name)
        if meta is not None:
            found[task_id] = meta
    return list(found.values())


def upstream_error(name: str | None, job: str, error: Mapping[str, str] | None) -> dict[str, str]:
    """Return the error of a job that never runs: which step failed, and why.

    >>> upstream_error("app.load", "42", {"type": "ValueError", "message": "empty"})
    {'type': 'Upstream', 'message': 'app.load (42) failed: ValueError: empty'}
    >>> upstream_error("app.load", "42", None)
    {'type': 'Upstream', 'message': 'app.load (42) was cancelled'}
    """
    what = f"{name or 'the step before'} ({job})"
    if error is None:
        return make_error(UPSTREAM, f"{what} was cancelled")
    why = ": ".join(part for part in (error["type"], error["message"]) if part)
    return make_error(UPSTREAM, f"{what} failed: {why}")


def _tasks(signatures: Any, depth: int) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield id, name and headers of each task of signatures that were frozen."""
    if depth == 0 or not isinstance(signatures, list | tuple):
        return
    for signature in signatures:
        if not isinstance(signature, Mapping):
            continue
        options = signature.get("options")
        options = options if isinstance(options, Mapping) else {}
        members = signature.get("kwargs")
        if signature.get("subtask_type") in ("chain", "group", "chord"):
            if isinstance(members, Mapping):
                parts = [members.get("tasks"), members.get("header"), [members.get("body")]]
                for part in parts:
                    inner = [part] if isinstance(part, Mapping) else part
                    yield from _tasks(inner, depth - 1)
        elif isinstance(options.get("task_id"), str):
            headers = options.get("headers")
            own = dict(headers) if isinstance(headers, Mapping) else {}
            own["stamps"] = {
                name: options[name] for name in (OWNER, TOPICS) if options.get(name) is not None
            }
            yield options["task_id"], str(signature.get("task")), own
        # What follows this one: the body of a chord whose part it is, or the rest of a chain.
        yield from _tasks([options.get("chord")], depth - 1)
        yield from _tasks(options.get("chain"), depth - 1)
