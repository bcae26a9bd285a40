"""A canvas that is published with Celery's own calls, as one job (docs/workflows.md).

Celery has no signal for a canvas, so `apply_async` of its three classes is wrapped while the
tracker is connected: in the process that publishes, the whole canvas is known, and with it how many
members there are. What it does is `submit`'s: a copy whose members know their places.
"""

from __future__ import annotations

import functools
import logging
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import canvas as celery_canvas
from celery._state import get_current_task
from celery.backends.base import Backend
from celery.canvas import Signature

from semantik_realtime.clock import now_text
from semantik_realtime.core.tally import numbers_of
from semantik_realtime.core.topic import job_topic
from semantik_realtime.errors import InvalidInput
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.canvas import CONTAINERS, Leaf, Plan, copied, first_task, plan_canvas
from semantik_realtime.worker.headers import (
    MAX_TOPICS,
    MEMBER,
    OWNER,
    TOPICS,
    WORKFLOW,
    inherit,
    read_header,
    read_job_meta,
    workflow_of,
)
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.places import begin_workflow
from semantik_realtime.worker.selection import mirrors_of
from semantik_realtime.worker.values import describe_error, note_misuse

logger = logging.getLogger(__name__)

CLASSES: tuple[Any, ...] = (celery_canvas._chain, celery_canvas.group, celery_canvas._chord)
"""What is wrapped. Celery's public names are these or subclasses."""
PUBLISHING = frozenset({"run", "_apply_tasks"})
"""Functions of `celery.canvas` that publish the parts of a canvas."""

Begun = tuple[Job, Signature, tuple[Any, ...], dict[str, Any]]
"""The workflow, and what to publish: a canvas, with the arguments and options of the call."""

MAX_REASONS = 1000
"""Reasons that a process logs."""

_refused: set[str] = set()
"""Why canvases were not made one job, as logged by this process."""
_originals: dict[Any, Any] = {}
"""What our functions in Celery's classes have replaced. Not an attribute of theirs, which another
package that wraps them would copy."""


class PlainCanvases:
    """Wraps and unwraps Celery's classes. One in each tracker.

    Args:
        runtime: returns the process's runtime, or None while the tracker is off.
        failures: counts what goes wrong, which the caller does not see.
    """

    def __init__(self, runtime: Callable[[], Runtime | None], failures: Counter[str]) -> None:
        self._runtime = runtime
        self._failures = failures
        # False: what another package has wrapped stays in Celery's classes, and does nothing.
        self._is_connected = False

    def connect(self) -> None:
        """Publish canvases as one job from now on. Idempotent."""
        self.disconnect()
        self._is_connected = True
        for owner in CLASSES:
            original = vars(owner)["apply_async"]
            wrapped = self._wrapped(original)
            _originals[wrapped] = original
            owner.apply_async = wrapped

    def disconnect(self) -> None:
        """Undo `connect`."""
        self._is_connected = False
        for owner in CLASSES:
            original = _originals.pop(vars(owner)["apply_async"], None)
            if original is not None:
                owner.apply_async = original

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def apply_async(canvas: Any, *args: Any, **options: Any) -> Any:
            begun = None
            runtime = self._active_runtime()
            if runtime is not None and not _is_part():
                _read_generators(canvas)
                begun = self._begin(runtime, canvas, args, options)
            if begun is None:
                return original(canvas, *args, **options)
            job, planned, args, options = begun
            try:
                result = original(planned, *args, **options)
            except BaseException as error:
                # A part of it may be published; then its tasks run, as without us.
                self._end(job, error)
                raise
            _check_id(job, result)
            return result

        return apply_async

    def _active_runtime(self) -> Runtime | None:
        """Return the runtime; None: no canvas is one job here."""
        if not self._is_connected:
            return None
        try:
            runtime = self._runtime()
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            self._note(error)
            return None
        return runtime if runtime is not None and runtime.settings.mirror_workflows else None

    def _begin(
        self, runtime: Runtime, canvas: Any, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Begun | None:
        """Send that a workflow waits; None: its tasks stay single jobs."""
        try:
            return begin(runtime, canvas, args, options)
        except SoftTimeLimitExceeded:
            # It is the task's.
            raise
        except Exception as error:
            self._note(error)
            return None

    def _note(self, error: Exception) -> None:
        kind = f"canvas: {type(error).__name__}"
        self._failures[kind] += 1
        if self._failures[kind] == 1:
            logger.error("tracker: receiver failed kind=%s (logged once)", kind, exc_info=error)

    def _end(self, job: Job, error: BaseException) -> None:
        try:
            job.end("job_failed", error=describe_error(error))
        except Exception:
            self._failures["canvas: end"] += 1


def begin(
    runtime: Runtime, canvas: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> Begun | None:
    """Plan a canvas, and send that its workflow waits.

    Returns None if its tasks are to stay what they are. ``args`` and ``options`` are those of the
    call of ``apply_async``.
    """
    if canvas.app.conf.task_always_eager:
        return None
    canvas, args, options = _with_body(canvas, args, dict(options))
    # The members have them.
    given, first = options.pop("headers", None), first_task(canvas)
    if first is None or MEMBER in ((first.get("options") or {}).get("headers") or {}):
        # Nothing to publish, or planned already: by `submit`, or a part of another one.
        return None
    task = get_current_task()
    parent = None if task is None else task.request
    own = {**((first.get("options") or {}).get("headers") or {}), **(given or {})}
    # None says that it is a job of its own. The header of a chain reaches its first task alone.
    is_free = parent is None or workflow_of(parent) is None or own.get(WORKFLOW, "") is None
    if not is_free and WORKFLOW not in own:
        # It adds members to the workflow of the task that publishes it.
        return None
    try:
        plan = plan_canvas(canvas, given)
    except InvalidInput as error:
        _refuse(str(error))
        return None
    if len(plan.leaves) == 1 and canvas.get("subtask_type") == "chain":
        return None
    messages = [_message_of(leaf) for leaf in plan.leaves]
    if not all(_is_free(message, is_free) for message in messages):
        # They are members of another workflow.
        return None
    meta = _meta_of(plan, messages, parent, runtime)
    if meta is None:
        return None
    workflow = _name(plan.canvas, options)
    try:
        job_topic(workflow)
    except InvalidInput as error:
        _refuse(str(error))
        return None
    headers = {OWNER: meta.owner, TOPICS: list(meta.topics) or None}
    plan.place(
        {name: value for name, value in headers.items() if value} | {WORKFLOW: workflow},
        MEMBER,
        is_submitted=False,
    )
    job = begin_workflow(runtime, workflow, meta, plan.as_state())
    return job, plan.canvas, args, options


def _with_body(
    canvas: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return a chord with the body that its call passes as an argument, and the call without it."""
    kwargs = options.get("kwargs", args[1] if len(args) > 1 else None)
    if canvas.get("subtask_type") != "chord" or not isinstance(kwargs, Mapping):
        return canvas, args, options
    body = kwargs.get("body")
    if not body:
        return canvas, args, options
    rest = {name: value for name, value in kwargs.items() if name != "body"}
    if "kwargs" in options:
        options["kwargs"] = rest
    else:
        args = (args[0], rest, *args[2:])
    whole = copied(canvas)
    whole["kwargs"]["body"] = body
    return whole, args, options


def _is_part() -> bool:
    """Return True if the canvas is published by another one that it is a part of, or by Celery."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module == celery_canvas.__name__:
            if frame.f_code.co_name in PUBLISHING:
                return True
        elif module != __name__:
            # The next step, a callback, the body of a chord, a replacement.
            is_celerys = module.partition(".")[0] == "celery"
            return is_celerys or isinstance(frame.f_locals.get("self"), Backend)
        frame = frame.f_back
    return False


def _read_generators(canvas: Any) -> None:
    """Read the generators of tasks in a canvas. What they raise is the caller's."""
    if isinstance(canvas, Mapping) and canvas.get("subtask_type") in CONTAINERS:
        for part in (canvas.get("kwargs") or {}).values():
            if isinstance(part, Mapping):
                _read_generators(part)
            elif isinstance(part, list | tuple):
                for task in part:
                    _read_generators(task)


def _message_of(leaf: Leaf) -> dict[str, Any]:
    """Return what the message of a task will state of the job."""
    options = leaf.signature["options"]
    stamps = {name: options[name] for name in (OWNER, TOPICS, WORKFLOW) if name in options}
    task_id = options.get("task_id") or ""
    return {**leaf.headers, "stamps": stamps, "id": task_id, "task": leaf.signature["task"]}


def _is_free(message: Mapping[str, Any], otherwise: bool) -> bool:
    """Return True if a task is a member of no workflow; ``otherwise``, if it says neither."""
    if WORKFLOW in message:
        return message[WORKFLOW] is None
    return otherwise and workflow_of(message) is None


def _meta_of(
    plan: Plan, messages: list[dict[str, Any]], parent: Any, runtime: Runtime
) -> JobMeta | None:
    """Return whose the workflow is; None: its tasks are not one job."""
    skipped = 0
    for leaf in plan.leaves:
        skipped |= numbers_of(leaf.skips)
    owners, topics = set(), []
    for number, message in enumerate(messages):
        name = message["task"]
        if mirrors_of(name, message, runtime.settings) is None:
            _refuse(f"the task {name} is not mirrored")
            return None
        is_first = not skipped >> number & 1
        if is_first and parent is not None:
            inherit(message, parent)
        # What follows another one belongs to that one's owner, unless it names one itself.
        if is_first or OWNER in message or OWNER in message["stamps"]:
            owners.add(read_header(message, OWNER))
        if message.get(TOPICS) or message["stamps"].get(TOPICS):
            topics.append(message)
    if len(owners) > 1:
        _refuse(f"its tasks have several owners (header {OWNER})")
        return None
    whole: dict[str, Any] = {"id": "canvas", OWNER: next(iter(owners))}
    meta = read_job_meta(whole)
    assert meta is not None
    found: dict[str, None] = {}
    for message in topics:
        if len(found) < MAX_TOPICS:
            named = read_job_meta({**message, "id": "canvas", WORKFLOW: None})
            found |= dict.fromkeys(() if named is None else named.topics)
    return JobMeta("", plan.name, meta.owner, tuple(found)[:MAX_TOPICS], now_text())


def _name(canvas: Any, options: dict[str, Any]) -> str:
    """Return the id of the result that a canvas will have, and make sure that it has it."""
    node = _result_of(canvas, in_chain=False)
    own, given = node["options"].get("task_id"), options.get("task_id")
    # The id of a task comes before that of the call, and that of the call before a group's.
    ids = (given, own) if node is canvas else (own, given, canvas["options"].get("task_id"))
    found = str(next((id for id in ids if id), None) or uuid.uuid4())
    node["options"]["task_id"] = found
    return found


def _result_of(node: Signature, in_chain: bool) -> Signature:
    """Return the part of a canvas whose id the result has: its last task, or the group at its end.

    Of a group of one task Celery makes that task, if it is a step of a chain.
    """
    kind, kwargs = node["subtask_type"], node["kwargs"]
    if kind == "chain":
        return _result_of(kwargs["tasks"][-1], in_chain=True)
    if kind == "chord":
        return _result_of(kwargs["body"], in_chain=False)
    only = node
    while only["subtask_type"] == "group" and len(only["kwargs"]["tasks"]) == 1:
        only = only["kwargs"]["tasks"][0]
    if only is node or (in_chain and only["subtask_type"] == "group"):
        return only
    inner = _result_of(only, in_chain)
    # Of a group of one member whose result is that of a group, Celery returns that one. A group
    # that is a member itself is only a list of members.
    is_group = only["subtask_type"] != "group" and inner["subtask_type"] == "group"
    return inner if in_chain or is_group else node


def _check_id(job: Job, result: Any) -> None:
    found = str(getattr(result, "id", None))
    if found != job.id:
        note_misuse("the result of a canvas has another id than its job", job.id, found)


def _refuse(reason: str) -> None:
    if reason not in _refused and len(_refused) < MAX_REASONS:
        _refused.add(reason)
        logger.info("tracker: canvas is not one job, %s (logged once a reason)", reason)
