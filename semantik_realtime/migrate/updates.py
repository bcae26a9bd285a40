"""``send_update(type, data)`` of a self-made helper, as events of a job."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from semantik_realtime.core.lifecycle import END_TYPES, STATUS_OF_TYPE
from semantik_realtime.core.topic import plain_id
from semantik_realtime.core.words import LIFE_TYPES
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.updates import apply_update
from semantik_realtime.worker.values import make_error, note_misuse

_END_OF_STATUS = {STATUS_OF_TYPE[type]: type for type in END_TYPES}


class Sent:
    """The result of a call that has done its work already: a caller may await it."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class JobUpdates:
    """Sends the updates of one job, and keeps its state.

    Of ``data``, ``current`` and ``total`` or else ``progress`` (a number, in
    percent) are the progress, ``message`` the message, ``status`` the status,
    ``error`` the error of an end, and all other members stay in the state's
    ``fields``. A type or a status that ends a job, which may be the
    application's own word (the setting ``host_words``), ends it. The first
    update sends ``job_started``, if it is not that itself.

    No call raises for a bad value or waits for a server; what cannot be sent is
    logged once for each kind, as in a task.

    Args:
        runtime: sends the events.
        job_id: the job.
        owner: the user who may watch it.
        new_attempt: whether the next attempt of the job begins here.
        known: the state so far, if another process made it.

    Raises:
        TopicError: an id cannot be the name of a topic.
    """

    def __init__(
        self,
        runtime: Runtime,
        job_id: str,
        *,
        owner: object = None,
        new_attempt: bool = False,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        self._runtime = runtime
        self._new_attempt = new_attempt
        self._known = dict(known or {})
        self._owner = None if owner is None else plain_id(owner)
        self._id = plain_id(job_id)
        # Made by the first update, when the owner is known.
        self._job: Job | None = None
        # Whether the log has, or gets first, that the job has begun.
        self._has_begun = self._known.get("status") not in (None, "queued")

    def set_user_id(self, user_id: object) -> None:
        """Make a user the owner of the job. Call it before the first update."""
        if self._job is not None:
            note_misuse("owner set after the first update", self._id, str(user_id))
        self._owner = None if user_id is None else plain_id(user_id)

    def send_update(self, type: str, data: Mapping[str, Any] | None = None) -> Sent:
        """Send one update. A coroutine may await the result, which is ready at once."""
        if not isinstance(type, str) or not isinstance(data, Mapping | None):
            note_misuse("update of another shape", self._id, f"{type!r}: {data!r}")
            return Sent()
        words, job = self._runtime.words, self.current()
        type = words.type_of(type)
        details = {name: value for name, value in (data or {}).items() if isinstance(name, str)}
        members = dict(details)
        status = words.status_of(members.get("status"))
        if isinstance(status, str) and status in STATUS_OF_TYPE.values():
            del members["status"]
        error = members.pop("error", None)
        is_own = job is self._job
        if is_own and not self._has_begun and type != "job_queued":
            # Before the rest, which the emitter's thread may send at once.
            self._has_begun = True
            job.begin()
        apply_update(job, None, members)
        if not is_own:
            # The task's own job, whose life the mirror reports.
            if type not in LIFE_TYPES:
                job.emit(type, **details)
            return Sent()
        if type not in LIFE_TYPES:
            job.emit(type, **details)
        elif type == "job_queued":
            job.queue()
        end = type if type in END_TYPES else _END_OF_STATUS.get(str(status))
        if end is not None:
            job.end(end, error=None if error is None else make_error("Error", str(error)))
        return Sent()

    def current(self) -> Job:
        """Return the job that the updates are about, made now if there is none yet."""
        if self._job is None:
            meta = JobMeta(self._id, owner=self._owner)
            attempt = 1 if self._new_attempt else None
            self._job = Job(self._runtime, meta, attempt, self._known, is_new=self._new_attempt)
            fields = self._known.get("fields")
            if isinstance(fields, dict):
                self._job.set(**fields)
        return self._job

    def flush(self) -> bool:
        """Wait at most ``flush_seconds`` until the backend has what was sent; False: it has not."""
        if self._job is not None:
            self._job.send_pending()
        return self._runtime.emitter.flush(self._runtime.settings.flush_seconds)
