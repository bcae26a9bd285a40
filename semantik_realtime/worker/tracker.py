"""Every Celery task as a job: from Celery's signals to events.

Which signals a case sends, in which process, is measured in
``tests/worker/test_workers.py``. A child of the prefork pool tells what it
sees; what it cannot tell, because it was killed, the main process tells.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from billiard.process import current_process
from celery import signals

from semantik_realtime.backends.guard import log_warnings
from semantik_realtime.clock import now_text
from semantik_realtime.config import load_settings
from semantik_realtime.core.topic import check_topic, job_topic, user_topic
from semantik_realtime.errors import ConfigError, InvalidInput
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.job import (
    Job,
    JobMeta,
    current,
    describe_error,
    enter,
    leave,
    note_misuse,
)
from semantik_realtime.worker.metrics import show_metrics
from semantik_realtime.worker.updates import mirror_updates

logger = logging.getLogger(__name__)

OWNER, TOPICS = "realtime_owner", "realtime_topics"
QUEUED_AT, ATTEMPT = "realtime_queued_at", "realtime_attempt"
"""Headers of a task's message. The first two are the application's, the others ours."""
MAX_TOPICS = 20
WARN_PAUSE_SECONDS = 5.0
INSTALLING_MODULE = "semantik_realtime.worker.command"
OWN_TASKS = "celery."
"""Celery's own tasks (unlocking chords, cleaning results) are nobody's jobs."""


class TaskTracker:
    """Connects Celery's signals to a `Runtime`.

    No receiver raises: failures are counted in ``failures`` and each kind is
    logged once. The runtime is made from the environment at first use; a
    wrong setting is logged and turns the mirror off.
    """

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self._runtime: Runtime | None = None
        self._is_off = False
        # In the main process of a worker: what was received and still matters to Celery.
        self._requests: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._running: dict[str, Job] = {}
        self._receivers: list[tuple[Any, str, Callable[..., None]]] = [
            (signal, f"semantik_realtime.{signal.name}", self._guarded(receiver))
            for signal, receiver in (
                (signals.celeryd_init, self._worker_init),
                (signals.worker_ready, self._worker_ready),
                (signals.before_task_publish, self._before_publish),
                (signals.after_task_publish, self._after_publish),
                (signals.task_received, self._received),
                (signals.task_prerun, self._prerun),
                (signals.task_success, self._success),
                (signals.task_failure, self._failure),
                (signals.task_retry, self._retry),
                (signals.task_revoked, self._revoked),
                (signals.task_unknown, self._unknown),
                (signals.task_postrun, self._postrun),
                (signals.worker_process_shutdown, self._process_shutdown),
            )
        ]

    def connect(self) -> None:
        """Listen to Celery; doing it twice is doing it once."""
        for signal, uid, receiver in self._receivers:
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    def disconnect(self) -> None:
        """Stop listening."""
        for signal, uid, _ in self._receivers:
            signal.disconnect(dispatch_uid=uid)

    def runtime(self) -> Runtime | None:
        """The runtime, made now if need be; None: the mirror is off."""
        if self._runtime is None and not self._is_off:
            # No lock, which a fork could leave locked: two of them would do no harm.
            try:
                made = Runtime()
            except ConfigError as error:
                logger.error("mirror: off, no task is mirrored error=%s", error)
                self._turn_off()
                return None
            if not made.settings.mirror:
                self._turn_off()
                return None
            self._runtime = self._runtime or made
        return self._runtime

    def use(self, runtime: Runtime) -> None:
        """Write through ``runtime`` from now on."""
        self._runtime = runtime
        self._is_off = False

    def flush(self) -> bool:
        """Wait, boundedly, until what was told has been answered; False: not in time."""
        runtime = self._runtime
        return runtime is None or runtime.emitter.flush(runtime.settings.flush_seconds)

    def _turn_off(self) -> None:
        self._is_off = True
        self.disconnect()

    def _guarded(self, receiver: Callable[..., None]) -> Callable[..., None]:
        name = receiver.__name__.strip("_")

        @functools.wraps(receiver)
        def guarded(**kwargs: Any) -> None:
            try:
                receiver(**kwargs)
            except Exception as error:
                kind = f"{name}: {type(error).__name__}"
                self.failures[kind] += 1
                if self.failures[kind] == 1:
                    logger.exception("mirror: receiver failed kind=%s (logged once)", kind)

        return guarded

    def _worker_init(self, conf: Any, **_: Any) -> None:
        # Pool processes that are not forked know only what the application imports.
        conf.imports = [*(conf.imports or ()), INSTALLING_MODULE]

    def _worker_ready(self, **_: Any) -> None:
        runtime = self.runtime()
        if runtime is not None:
            runtime.emitter.recover()
            threading.Thread(target=_warn, args=(runtime,), daemon=True).start()

    # Publishing

    def _before_publish(self, sender: Any, headers: Any, **_: Any) -> None:
        if not _is_mirrored(sender, headers) or self.runtime() is None:
            return
        job = current()
        if job is None or job.id != headers["id"]:
            headers.setdefault(QUEUED_AT, now_text())
            return
        # A retry, or a replacement: the same job goes on in a message of its own.
        origin = job.origin
        for name, value in (
            (OWNER, origin.owner),
            (TOPICS, list(origin.topics) or None),
            (QUEUED_AT, origin.queued_at),
            (ATTEMPT, job.attempt),
        ):
            if value is not None:
                headers[name] = value

    def _after_publish(self, sender: Any, headers: Any, **_: Any) -> None:
        if not _is_mirrored(sender, headers) or headers.get("retries"):
            return
        runtime = self.runtime()
        job = current()
        if runtime is not None and (job is None or job.id != headers["id"]):
            Job(runtime, read_job_meta(headers), 0).queue()

    # In the process that runs the task

    def _prerun(self, task_id: str, task: Any, **_: Any) -> None:
        runtime = self.runtime()
        if runtime is None or task.name.startswith(OWN_TASKS):
            return
        origin = read_job_meta(task.request, id=task_id, name=task.name)
        attempt = self._claim(runtime, origin.id, _attempts_before(task.request) + 1)
        job = Job(runtime, origin, attempt)
        # No number is left for a job that was deleted: it runs, and nobody is to hear of it.
        job.ended = attempt == 0
        self._running[task_id] = job
        enter(job)
        job.begin()
        mirror_updates(task)

    def _claim(self, runtime: Runtime, job_id: str, expected: int) -> int:
        if runtime.backend.fails_writes:
            return expected
        topic = job_topic(job_id)
        try:
            return runtime.backend.claim(topic, job_id, secrets.token_hex(8))
        except Exception:
            self.failures["claim"] += 1
            if self.failures["claim"] == 1:
                logger.warning("mirror: attempt not claimed job=%s (logged once)", job_id)
            return expected

    def _success(self, sender: Any, **_: Any) -> None:
        job = self._job(sender.request.id)
        if job is not None:
            job.end("job_completed")

    def _postrun(self, task_id: str, state: str | None, retval: Any = None, **_: Any) -> None:
        job = self._job(task_id)
        if job is None:
            return
        try:
            self._end_unsaid(job, state, retval)
        finally:
            leave(job)
            if self._running.get(task_id) is job:
                del self._running[task_id]
        # While the backend is away the end waits in the spool, and no task waits for it.
        runtime = job.runtime
        runtime.emitter.flush(runtime.settings.flush_seconds, while_failing=False)

    def _end_unsaid(self, job: Job, state: str | None, retval: Any) -> None:
        """End a job by how Celery left it, where no other signal has said it."""
        if job.ended:
            return
        if state == "IGNORED":
            if job.declared is not None:
                type, error = job.declared
                job.end(type, error=error)
            elif not str(retval).startswith("Replaced by"):
                job.end("job_completed", data={"ignored": True})
        elif state == "REJECTED":
            if getattr(retval, "requeue", False):
                job.end("job_retrying", data={"rejected": True})
            else:
                job.end("job_failed", error=describe_error(retval))
        elif state is None:
            raised = sys.exc_info()[1]
            if isinstance(raised, Exception) or not _is_being_ended(raised):
                job.end("job_failed", error=describe_error(raised))
            else:
                # The process is being ended; the main process knows why, and tells it.
                job.push()

    def _process_shutdown(self, **_: Any) -> None:
        self.flush()

    # In either

    def _failure(self, sender: Any, task_id: str, exception: Any, **_: Any) -> None:
        self._end(task_id, "job_failed", sender.request, sender.name, describe_error(exception))

    def _retry(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        cause = getattr(reason, "exc", None)
        when = getattr(reason, "when", None)
        self._end(
            request.id,
            "job_retrying",
            request,
            sender.name,
            describe_error(cause) if cause is not None else None,
            {"delay_seconds": when} if isinstance(when, int | float) else None,
        )

    # In the main process of a worker

    def _received(self, request: Any, **_: Any) -> None:
        self._requests[request.id] = request

    def _revoked(
        self, sender: Any, request: Any, terminated: bool, expired: bool, **_: Any
    ) -> None:
        how = "expired" if expired else "terminated" if terminated else "revoked"
        self._end(request.id, "job_cancelled", request, sender.name, None, {"how": how}, terminated)

    def _unknown(self, message: Any, name: str, id: str, **_: Any) -> None:
        error = {"type": "NotRegistered", "message": f"no worker knows the task {name}"}
        self._end(id, "job_failed", message.headers or {}, name, error, has_run=False)

    def _job(self, task_id: str | None) -> Job | None:
        job = current()
        if job is not None and job.id == task_id:
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
        """End a job, from wherever Celery tells of it.

        The main process does not know what the task has said of itself, so
        it asks the backend.
        """
        job = self._job(task_id)
        if job is not None:
            job.end(type, error=error, data=data)
            return
        runtime = self.runtime()
        if runtime is None or name.startswith(OWN_TASKS):
            return
        received = self._requests.get(task_id)
        source = request if received is None else received.request_dict
        origin = read_job_meta(source, id=task_id, name=name)
        known = {"attempt": _attempts_before(source) + has_run}
        attempts: list[int | None] = [None]
        if has_run:
            recalled = recall_state(runtime, origin.id)
            # Its start may never have been told: then the newest word is that it was queued.
            attempt = max(known["attempt"], recalled.get("attempt", 0))
            if recalled.get("attempt", 0) < attempt:
                # Or it will be told later, by whoever adopts it: so it is ended by its number.
                # If a newer attempt is known that is refused, and if not, what follows is.
                attempts = [attempt, None]
            known |= recalled | {"attempt": attempt}
        if "ended_at" in known:
            return
        # Only the pool's process knows the attempt's number for certain: the newest is meant.
        for attempt in attempts:
            Job(runtime, origin, attempt, known).end(type, error=error, data=data)


_mirror: TaskTracker | None = None


def install(app: object = None, runtime: Runtime | None = None) -> TaskTracker:
    """TaskTracker every Celery task of this process. Safe to call again.

    Celery's signals belong to the process, so ``app`` only says in the code
    for whom it is. Without a ``runtime`` one is made from the environment,
    at first use. With the setting ``mirror`` off nothing is connected.
    """
    global _mirror
    if _mirror is None:
        _mirror = TaskTracker()
    elif runtime is None:
        return _mirror
    if runtime is not None:
        _mirror.use(runtime)
    if is_wanted(runtime):
        _mirror.connect()
        show_metrics(_mirror.runtime)
    else:
        _mirror.disconnect()
    return _mirror


def is_wanted(runtime: Runtime | None = None) -> bool:
    """Whether the settings want a mirror. Wrong settings are reported at first use."""
    try:
        settings = load_settings() if runtime is None else runtime.settings
    except ConfigError:
        return True
    return settings.mirror


def read_job_meta(message: Any, *, id: str | None = None, name: str | None = None) -> JobMeta:
    """What the headers of a task's message, or Celery's request, say about the job.

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


def recall_state(runtime: Runtime, job_id: str) -> dict[str, Any]:
    """The job's state as the backend has it; empty when it has no answer in time.

    Read through a backend of its own: the process may have a loop that owns
    the other one's connections.
    """
    if runtime.backend.fails_writes:
        return {}
    backend = runtime.second_backend()
    if backend is None:
        return {}

    known: dict[str, Any] = {}
    answered = threading.Event()

    async def read() -> None:
        try:
            await backend.open()
            snapshot = await backend.snapshot(job_topic(job_id), None, 0)
            if job_id in snapshot.states:
                known.update(msgspec.json.decode(snapshot.states[job_id])["state"])
        except Exception as error:
            logger.warning("mirror: state not recalled job=%s error=%r", job_id, error)
        finally:
            # Nobody waits for the good-bye.
            answered.set()
            await backend.close()

    # A thread, because this one may have a loop of its own.
    threading.Thread(target=lambda: asyncio.run(read()), daemon=True).start()
    return dict(known) if answered.wait(runtime.settings.flush_seconds) else {}


def _is_mirrored(name: Any, headers: Any) -> bool:
    # Messages of Celery's first protocol have no id in their headers.
    return isinstance(headers, dict) and "id" in headers and not str(name).startswith(OWN_TASKS)


def _header(message: Any, name: str) -> Any:
    value = message.get(name)
    # Where a task is applied without a message, its headers stay together.
    return (message.get("headers") or {}).get(name) if value is None else value


def _attempts_before(message: Any) -> int:
    """How many attempts there were, as far as the message knows.

    Celery does not count redeliveries; our header does, up to the last retry.
    """
    counts = (message.get("retries"), _header(message, ATTEMPT))
    return max((count for count in counts if isinstance(count, int)), default=0)


def _checked(what: str, check: Callable[[str], str], value: str, job_id: str) -> str | None:
    try:
        check(value)
    except InvalidInput as error:
        note_misuse(f"{what} left out", job_id, str(error))
        return None
    return value


def _is_being_ended(raised: BaseException | None) -> bool:
    """Whether a signal ends this pool process, rather than the task itself by `sys.exit`.

    billiard's signal handler exits with the signal's number minus 256. A task
    that exits must be told here: Celery 5.3 fails to, for it cannot encode a
    SystemExit as a result.
    """
    if str(current_process().name) == "MainProcess":
        return False
    if not isinstance(raised, SystemExit):
        return True
    return isinstance(raised.code, int) and -256 < raised.code < -128


def _warn(runtime: Runtime) -> None:
    """Log what the backend warns of, as soon as it answers; in a thread that nobody waits for."""
    try:
        while not asyncio.run(log_warnings(runtime.backend)):
            time.sleep(WARN_PAUSE_SECONDS)
    except Exception:
        logger.exception("mirror: backend not asked for warnings")
