"""Every Celery task as a job: from Celery's signals to events.

The process that publishes a task sends ``job_queued``. The process that runs it (a child of the
prefork pool; with threads, solo or gevent the worker itself) sends the rest. What a killed child
can no longer send, the worker's main process sends: it gets Celery's signals for lost, revoked
and unknown tasks. When Celery sends which signals is measured in `tests/worker/test_workers.py`.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from celery import signals
from celery._state import get_current_task
from celery.exceptions import Reject

from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.aborts import follow_aborts
from semantik_realtime.worker.acceptance import is_active, look_at_acceptance
from semantik_realtime.worker.announcements import announce_member
from semantik_realtime.worker.beat import complete_owner, note_beat
from semantik_realtime.worker.cancelled import JobCancelled, RevokedResults
from semantik_realtime.worker.current import current_job, pop_job, push_job, running_jobs
from semantik_realtime.worker.elsewhere import end_elsewhere
from semantik_realtime.worker.endings import WORKER_STOPPED, describe_failure, ending_of
from semantik_realtime.worker.headers import (
    count_attempts,
    inherit,
    job_message,
    read_job_meta,
)
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.lazy_runtime import LazyRuntime
from semantik_realtime.worker.metrics import export_metrics
from semantik_realtime.worker.mirroring import start_mirrors
from semantik_realtime.worker.mirrors import Mirrors
from semantik_realtime.worker.places import complete_headers
from semantik_realtime.worker.plain_canvas import PlainCanvases
from semantik_realtime.worker.process import WorkerProcess
from semantik_realtime.worker.receivers import guarded
from semantik_realtime.worker.revokes import is_revoked
from semantik_realtime.worker.selection import mirrors_of, note_received
from semantik_realtime.worker.upstream import CHORD_UNLOCK, end_downstream, watch_chords, whole
from semantik_realtime.worker.values import delay_until, describe_error, seconds_until
from semantik_realtime.worker.workflow import WorkflowFollower


class TaskTracker(LazyRuntime):
    """Connects Celery's signals to a `Runtime`.

    No receiver raises: failures are counted in ``failures``, and the first of
    each kind is logged. The runtime is made from the environment at first use;
    a wrong setting is logged and turns the tracker off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures: Counter[str] = Counter()
        """How often each receiver failed, by ``"receiver: exception"``."""
        # In the main process of a worker: the requests that Celery still holds, by task id.
        self._requests: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._failed_late: deque[str] = deque(maxlen=100)
        self._running = running_jobs
        self._workflows = WorkflowFollower(self.runtime)
        self._canvases = PlainCanvases(self.runtime, self.failures)
        self._revoked_results = RevokedResults()
        self._process = WorkerProcess(
            self.runtime,
            self._revoked_results,
            guarded(self._task_revoked, self.failures),
            self._workflows.running,
            self._end,
        )
        receivers: list[tuple[Any, Callable[..., None]]] = [
            # Before the process's own, which flush what these send.
            *self._workflows.receivers(),
            *self._process.receivers(),
            (signals.beat_init, note_beat),
            (signals.before_task_publish, self._before_publish),
            (signals.after_task_publish, self._after_publish),
            (signals.task_received, self._received),
            (signals.task_prerun, self._prerun),
            (signals.task_failure, self._failure),
            (signals.task_retry, self._retry),
            (signals.task_revoked, self._revoked),
            (signals.task_unknown, self._unknown),
            (signals.task_postrun, self._postrun),
        ]
        self.is_connected = False
        """Whether Celery's signals call the receivers. Set by `connect` and `disconnect`."""
        self._receivers = [
            # Celery connects one receiver for each uid of a signal.
            (signal, f"semantik_realtime.{one.__qualname__}.{signal.name}", one)
            for signal, one in ((signal, guarded(one, self.failures)) for signal, one in receivers)
        ]

    def connect(self) -> None:
        """Connect the receivers to Celery's signals. Idempotent."""
        for signal, uid, receiver in self._receivers:
            signal.connect(receiver, weak=False, dispatch_uid=uid)
        self._canvases.connect()
        self.is_connected = True

    def disconnect(self) -> None:
        """Undo `connect`."""
        for signal, uid, _ in self._receivers:
            signal.disconnect(dispatch_uid=uid)
        self._canvases.disconnect()
        self.is_connected = False

    def close(self, timeout_seconds: float) -> None:
        """End the threads of this tracker; it follows no workflow afterwards."""
        self._workflows.close(timeout_seconds)

    # In a process that publishes a task.

    def _before_publish(self, sender: Any, headers: Any, body: Any = None, **_: Any) -> None:
        runtime = self.runtime()
        if not isinstance(headers, dict) or runtime is None:
            return
        parent = self._publisher(headers)
        if parent is not None:
            # Celery's own messages too: a task of Celery publishes the body of a chord.
            inherit(headers, parent)
        complete_owner(headers, runtime.settings.beat_owner)
        message = job_message(sender, headers, body)
        if message is None or self._mirrors(sender, message) is None:
            return
        complete_headers(runtime, headers, body, str(message["id"]), current_job())

    def _publisher(self, headers: Mapping[str, Any]) -> Any:
        """Return the request of the task that publishes a message; None outside of tasks."""
        task = get_current_task()
        if task is not None:
            return task.request
        # What follows a task whose process was killed is published by the main process.
        received = self._requests.get(str(headers.get("parent_id")))
        return None if received is None else received.request_dict

    def _after_publish(self, sender: Any, headers: Any, body: Any = None, **_: Any) -> None:
        message = job_message(sender, headers, body)
        if message is None:
            return
        job = current_job()
        is_own = job is not None and job.id == str(message["id"])
        if message.get("retries"):
            if job is not None and is_own:
                job.next_try = delay_until(message.get("eta"))
            return
        runtime = self.runtime()
        if self._mirrors(sender, message) is None or runtime is None or is_own:
            return
        meta = read_job_meta(message)
        # One that has begun, and is not a retry, goes on where its task was replaced.
        if meta is not None and not count_attempts(message):
            Job(runtime, meta, 0).queue()

    # In the process that runs the task.

    def _prerun(self, task_id: str, task: Any, **_: Any) -> None:
        runtime, request = self.runtime(), vars(task.request)
        if request.get("chord") or task.name == CHORD_UNLOCK:
            watch_chords(task, self.runtime, self.failures)
        mirrors = self._mirrors(task.name, request, task)
        if runtime is None or mirrors is None:
            return
        outer = current_job()
        if outer is not None and outer.id == task_id:
            outer.replacements += 1
            return
        meta = read_job_meta(request, id=task_id, name=task.name)
        if meta is None:
            return
        job = Job(runtime, meta, count_attempts(request) + 1, is_new=True)
        self._running[task_id] = job
        push_job(job)
        job.handled = sys.exc_info()[1]
        job.begin()
        if is_revoked(task_id):
            job.request_cancel()
        start_mirrors(job, task, mirrors)
        follow_aborts(task)

    def _postrun(
        self, task_id: str, state: str | None, retval: Any = None, task: Any = None, **_: Any
    ) -> None:
        job = self._job(task_id)
        if job is None:
            return
        if job.replacements:
            job.replacements -= 1
            return
        try:
            self._end_after_run(job, task, state, retval)
        finally:
            pop_job(job)
            if self._running.get(task_id) is job:
                del self._running[task_id]
            if getattr(getattr(task, "request", None), "is_eager", False):
                # No worker receives an eager task.
                self._workflows.ended(job.meta)

    def _end_after_run(self, job: Job, task: Any, state: str | None, retval: Any) -> None:
        """End a job that no other signal has ended, by the state that Celery passes."""
        if job.has_ended:
            return
        raised = sys.exc_info()[1]
        if raised is job.handled:
            # The task was called while another one handled an exception.
            raised = None
        if state == "SUCCESS" and raised is None:
            # No receiver of `task_success`: each one costs a short task as much as its own call.
            if job.is_aborted:
                job.end("job_cancelled", data={"how": "stopped"})
            else:
                job.end("job_completed")
            return
        member = job.meta.member
        is_awaited = member is not None and member.is_awaited
        ending = ending_of(state, retval, raised, job.declared_end, is_awaited)
        if ending is not None:
            if isinstance(retval, JobCancelled):
                self._revoked_results.store(task)
            job.end(ending.type, error=ending.error, data=ending.data)
            if state == "SUCCESS":
                # Celery signals a failure later, when the request is gone.
                end_downstream(self.runtime(), task.request, job.id, task.name, ending.error)
                if not task.request.is_eager:
                    self._failed_late.append(job.id)
        elif state is None:
            # The main process notices that this process ends, and sends the job's end.
            job.send_pending()

    # In the process that runs the task, or in the main process of its worker.

    def _failure(self, sender: Any, task_id: str, exception: Any, **_: Any) -> None:
        if task_id in self._failed_late:
            self._failed_late.remove(task_id)
            return
        error = describe_failure(exception)
        if not isinstance(exception, Reject):
            # The process that ran the task sends the end of a rejected one, behind its start.
            self._end(task_id, "job_failed", sender.request, sender.name, error)
        received = self._requests.get(task_id)
        request = sender.request if received is None else whole(received)
        end_downstream(self.runtime(), request, task_id, sender.name, error)

    def _retry(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        if reason is None and not getattr(sender, "acks_late", False):
            # A cold stop of the worker. Celery calls it a retry, but the message is acknowledged,
            # so no worker gets it again.
            self._end(request.id, "job_failed", request, sender.name, WORKER_STOPPED)
            return
        cause = getattr(reason, "exc", None)
        when = getattr(reason, "when", None)
        self._end(
            request.id,
            "job_retrying",
            request,
            sender.name,
            describe_error(cause) if cause is not None else None,
            None if when is None else {"delay_seconds": seconds_until(when)},
        )

    # In the main process of a worker.

    def _task_revoked(self, task_id: str) -> None:
        """Celery has told this worker that a task is revoked."""
        job, received = self._job(task_id), self._requests.get(task_id)
        if job is not None:
            # Its task runs in this process: threads, gevent.
            job.request_cancel()
        elif received is not None and not is_active(received):
            data = {"how": "revoked"}
            self._end(task_id, "job_cancelled", None, received.name, None, data, has_run=False)
        self._workflows.revoked(task_id, self._task_revoked)

    def _received(self, sender: Any, request: Any, **_: Any) -> None:
        self._requests[request.id] = request
        message = request.request_dict
        mirrors = self._mirrors(request.name, message, getattr(request, "task", None))
        note_received(message, mirrors)
        if mirrors is not None:
            look_at_acceptance(request, getattr(sender, "pool", None))
        workflow = self._workflows.received(request)
        if workflow is not None:
            announce_member(sender, request.id, workflow)

    def _revoked(
        self, sender: Any, request: Any, terminated: bool, expired: bool, **_: Any
    ) -> None:
        how = "expired" if expired else "terminated" if terminated else "revoked"
        self._end(request.id, "job_cancelled", request, sender.name, None, {"how": how}, terminated)
        end_downstream(self.runtime(), request, request.id, sender.name, None)

    def _unknown(self, message: Any, name: str, id: str, **_: Any) -> None:
        error = {"type": "NotRegistered", "message": f"no worker knows the task {name}"}
        self._end(id, "job_failed", message.headers or {}, name, error, has_run=False)

    def _mirrors(self, name: Any, message: Any, task: Any = None) -> Mirrors | None:
        """Return what is mirrored of a task; None: nothing, or the tracker is off."""
        runtime = self.runtime()
        return mirrors_of(name, message, None if runtime is None else runtime.settings, task)

    def _job(self, task_id: str | None) -> Job | None:
        """Return the job of a task that runs in this process."""
        job = current_job()
        if job is not None and job.id == str(task_id):
            return job
        return None if task_id is None else self._running.get(task_id)

    def _end(
        self,
        task_id: str,
        type: str,
        request: Any,
        name: str,
        error: dict[str, str] | None,
        data: Mapping[str, Any] | None = None,
        has_run: bool = True,
    ) -> None:
        """End a job, in whichever process Celery sent the signal.

        Only the process that runs the task knows the job's state and attempt;
        another one reads them from the backend.
        """
        job = self._job(task_id)
        if job is not None:
            job.end(type, error=error, data=data)
            return
        runtime = self.runtime()
        # In the main process `sender.request` is empty; the received request has the headers.
        received = self._requests.get(task_id)
        source = request if received is None else received.request_dict
        if runtime is None or self._mirrors(name, source) is None:
            return
        meta = read_job_meta(source, id=task_id, name=name)
        if meta is None:
            return
        attempt = count_attempts(source) + has_run
        end_elsewhere(runtime, meta, attempt, has_run, type, error=error, data=data)
        self._workflows.ended(meta)


_tracker: TaskTracker | None = None


def install(app: object = None, runtime: Runtime | None = None) -> TaskTracker:
    """Track every Celery task of this process. Idempotent.

    Celery's signals belong to the process: ``app`` has no effect, and only
    shows the reader of a call which application it is for. Without a
    ``runtime`` one is made from the environment at first use. With the setting
    ``mirror`` off nothing is connected.
    """
    global _tracker
    if _tracker is None:
        _tracker = TaskTracker()
    elif runtime is None:
        return _tracker
    if runtime is not None:
        _tracker.use(runtime)
    if _is_enabled(runtime):
        _tracker.connect()
        export_metrics(_tracker.runtime)
    else:
        _tracker.disconnect()
    return _tracker


def swap_tracker(tracker: TaskTracker | None) -> TaskTracker | None:
    """Make ``tracker`` the one that `install` returns; return the one before. Connects neither."""
    global _tracker
    before, _tracker = _tracker, tracker
    return before


def _is_enabled(runtime: Runtime | None) -> bool:
    """Return True if the settings turn the tracker on. Wrong settings are logged at first use."""
    try:
        settings = load_settings() if runtime is None else runtime.settings
    except ConfigError:
        return True
    return settings.mirror
