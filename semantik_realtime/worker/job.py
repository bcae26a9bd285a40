"""What task authors use: the job that runs here, and what may be said about it.

::

    from semantik_realtime import job

    job.progress(3, 10)
    job.emit("file_completed", file="report.pdf", chunks=12)
    job.set(failed_files=0)

Nothing here raises into a task or waits for a server: what cannot be sent is
counted in `misuse`, logged once for each kind, and left out.
"""

from __future__ import annotations

import itertools
import logging
import math
import numbers
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.core.drafts import make_drafts, owners_of
from semantik_realtime.core.lifecycle import END_TYPES, RESERVED_TYPES, STATUS_OF_TYPE
from semantik_realtime.core.topic import job_topic, user_topic
from semantik_realtime.errors import InvalidInput
from semantik_realtime.runtime import Runtime

logger = logging.getLogger(__name__)

MAX_TEXT = 1000
"""Characters kept of a message."""
MAX_TYPE = 200
MAX_NUMBER = 2**53

misuse: Counter[str] = Counter()
"""What tasks said that could not be sent, by kind, since the process began."""

_encode = msgspec.json.Encoder().encode
_serial = itertools.count()
# What bad values raise, and no more: Celery's time limits arrive as exceptions
# in the middle of any call, and must pass.
_BAD_VALUE = (InvalidInput, TypeError, ValueError, OverflowError, RecursionError)


class JobMeta(msgspec.Struct, frozen=True):
    """What a task's message says about the job.

    ``topics`` are further feeds, beside the owner's.
    """

    id: str
    name: str | None = None
    owner: str | None = None
    topics: Sequence[str] = ()
    queued_at: str | None = None


class Job:
    """One attempt of a job, as this process sees it.

    Its methods may be called from any thread. The job's topic gets every
    event; the feeds get those of its life and, more slowly, its progress.
    Each event carries the whole state.

    Args:
        attempt: its number; 0 while queued, None for the newest whichever that is.
        known: the state so far, when this process did not make it.

    Raises:
        TopicError: the id cannot be the name of a topic.
    """

    def __init__(
        self,
        runtime: Runtime,
        origin: JobMeta,
        attempt: int | None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        self.runtime = runtime
        self.origin = origin
        self.id = origin.id
        self.attempt = attempt
        self.topic = job_topic(origin.id)
        self.ended = False
        """Whether this attempt is over here; nothing is sent any more."""
        self.outer: Job | None = None
        self.tracks = 0
        """How many `track` loops are open."""
        self.declared: tuple[str, dict[str, str] | None] | None = None
        """How the task said it would end: an event type, and the error."""
        feeds = [] if origin.owner is None else [user_topic(origin.owner)]
        # The job's own topic, and its feeds, each with the owner that it gets.
        self._topics = {self.topic: origin.owner}
        self._feeds = owners_of(self.topic, [*feeds, *origin.topics], origin.owner)
        del self._feeds[self.topic]
        self._state: dict[str, Any] = {"status": "queued", "attempt": attempt or 0}
        if origin.name is not None:
            self._state["name"] = _clean(origin.name)
        if origin.queued_at is not None:
            self._state["queued_at"] = origin.queued_at
        self._state.update(known or {})
        # Reentrant: a log record made in here may come back as an event of the job.
        self._lock = threading.RLock()
        self._said: tuple[Any, Any, Any] | None = None
        self._heard: tuple[Any, Any, Any] | None = None
        self._text: str | None = None
        self._heard_text: str | None = None
        self._fields: dict[str, bytes] = {}
        # Counts changes of the state, to know whether the log and the feeds have the newest.
        self._version = 0
        self._sent = 0
        self._fed = 0
        self._due = False
        self._feed_due = False
        # Not by id alone: the source of an ended attempt may still wait under its key.
        serial = next(_serial)
        self._pace_key = (self.id, serial)
        self._feed_key = (self.id, serial, "feeds")

    def progress(
        self,
        current: float,
        total: float | None = None,
        message: str | None = None,
        unit: str | None = None,
    ) -> None:
        """Say how far the job is. Costs less than a microsecond; sent when it is due.

        Each call says the whole of it: no ``total`` means that it is unknown.
        Without a ``message`` the last one stays.
        """
        if message is not None:
            self._text = message
        self._said = (current, total, unit)
        # The value first, then the flag: `_send_due` clears the flag before it reads the value.
        if not self._due:
            self._pace()

    def message(self, text: str) -> None:
        """Say in one line what the job is doing."""
        self._text = text
        if not self._due:
            self._pace()

    def set(self, /, **fields: Any) -> None:
        """Set members of the state's ``fields``; the others stay."""
        limit = self.runtime.settings.max_event_bytes // 2
        with self._lock:
            merged = dict(self._fields)
            for name, value in fields.items():
                try:
                    # Encoded now: what cannot be must not spoil later events, and a
                    # list may change before they are made.
                    _encode(name)
                    merged[name] = _encode(value)
                except _BAD_VALUE as error:
                    note_misuse("field cannot be encoded", self.id, f"{name[:80]!r}: {error}")
            if merged == self._fields:
                return
            size = sum(len(name) + len(value) for name, value in merged.items())
            if size > limit:
                note_misuse("fields too big", self.id, f"{size} bytes, the limit is {limit}")
                return
            self._fields = merged
            self._state["fields"] = {name: msgspec.Raw(raw) for name, raw in merged.items()}
            self._version += 1
        if not self._due:
            self._pace()

    def emit(self, type: str, /, **data: Any) -> None:
        """Send an event of the application's own on the job's topic.

        Types are lower-case words, ``file_completed``; those of a job's life are refused.
        """
        try:
            reserved = type in RESERVED_TYPES
        except TypeError:
            reserved = False
        if reserved:
            note_misuse("reserved event type", self.id, type)
            return
        with self._lock:
            if self.ended:
                return
            self._hear()
            # The feeds hear of a new state from `_send_due`: whatever changed it is paced.
            if self._send(type, self._topics, data):
                self._sent = self._version

    def begin(self) -> None:
        """Tell that the attempt has started."""
        with self._lock:
            if self.ended:
                return
            self._state.update(status="running", started_at=now_text())
            self._announce("job_started")

    def queue(self) -> None:
        """Tell that the job waits for a worker."""
        with self._lock:
            self._announce("job_queued")

    def end(
        self,
        type: str,
        *,
        error: dict[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        message: str | None = None,
    ) -> None:
        """Tell how the attempt ended, once; nothing is sent afterwards.

        ``job_retrying`` ends the attempt but not the job.
        """
        with self._lock:
            if self.ended:
                return
            self._hear()
            self._state["status"] = STATUS_OF_TYPE[type]
            if type in END_TYPES:
                self._state["ended_at"] = now_text()
            if error is not None:
                self._state["error"] = error
            if message is not None:
                self._state["message"] = message
            self._announce(type, data)
            self.ended = True

    def push(self) -> None:
        """Send what is not yet sent, without waiting until it is due."""
        with self._lock:
            self._send_progress()
            self._send_feeds()

    def restart_in_child(self) -> None:
        """Forget what another thread of the parent held or had promised."""
        self._lock = threading.RLock()
        self._due = False
        self._feed_due = False

    def spoken_message(self) -> str | None:
        """The message as it was said last."""
        return self._text

    def _pace(self) -> None:
        self._due = True
        runtime = self.runtime
        runtime.emitter.throttle(self._pace_key, runtime.settings.progress_seconds, self._send_due)

    def _pace_feeds(self) -> None:
        if not self._feeds or self._feed_due:
            return
        self._feed_due = True
        runtime = self.runtime
        runtime.emitter.throttle(self._feed_key, runtime.settings.feed_seconds, self._feeds_due)

    def _send_due(self) -> None:
        self._due = False
        with self._lock:
            self._send_progress()
            if self._fed != self._version:
                self._pace_feeds()

    def _feeds_due(self) -> None:
        self._feed_due = False
        with self._lock:
            self._send_feeds()

    # The lock is held from here on: an older state can never be queued after a newer one.

    def _send_progress(self) -> None:
        if self.ended:
            return
        self._hear()
        if self._sent != self._version and self._send("job_progress", self._topics):
            self._sent = self._version

    def _send_feeds(self) -> None:
        if self.ended or self._fed == self._version or not self._feeds:
            return
        self._hear()
        if self._send("job_progress", self._feeds):
            self._fed = self._version

    def _announce(self, type: str, data: Mapping[str, Any] | None = None) -> None:
        topics = self._topics | self._feeds
        if not self._send(type, topics, data):
            # An end must arrive, even if what the task said leaves no room for it.
            kept = ("status", "attempt", "queued_at", "started_at", "ended_at")
            error = self._state.get("error")
            self._state = {name: self._state[name] for name in kept if name in self._state}
            if error is not None:
                self._state["error"] = {"type": error["type"], "message": ""}
            self._send(type, topics)
        self._sent = self._fed = self._version

    def _send(
        self,
        type: str,
        topics: Mapping[str, str | None],
        data: Mapping[str, Any] | None = None,
    ) -> bool:
        try:
            drafts = make_drafts(
                topics,
                type,
                now_text(),
                self.id,
                state=self._state,
                data=data,
                job=self.id,
                attempt=self.attempt,
                terminal=type in END_TYPES,
                max_bytes=self.runtime.settings.max_event_bytes,
            )
        except _BAD_VALUE as error:
            kind = error.code if isinstance(error, InvalidInput) else "bad_event"
            note_misuse(f"event dropped, {kind}", self.id, str(error))
            return False
        for draft in drafts:
            self.runtime.emitter.emit(draft)
        return True

    def _hear(self) -> None:
        """Take into the state what the task said last."""
        # Compared, never cleared: the task may be saying something at this moment.
        said = self._said
        if said is not None and said is not self._heard:
            self._heard = said
            try:
                current, total, unit = said
                progress: dict[str, Any] = {
                    "current": _number(current),
                    "total": None if total is None else _number(total),
                }
                if unit:
                    progress["unit"] = _line(unit)
            except _BAD_VALUE as error:
                note_misuse("progress is not a number", self.id, str(error))
            else:
                if progress != self._state.get("progress"):
                    self._state["progress"] = progress
                    self._version += 1
        text = self._text
        if text is not None and text is not self._heard_text:
            self._heard_text = text
            try:
                line = _line(text)
            except _BAD_VALUE as error:
                note_misuse("message is not text", self.id, str(error))
            else:
                if line != self._state.get("message"):
                    self._state["message"] = line
                    self._version += 1


class CurrentJob:
    """The job that runs in this context; outside a job every method does nothing.

    A thread that a task starts has a context of its own: give it
    ``current()``, whose methods are the same.
    """

    __slots__ = ()

    @property
    def id(self) -> str | None:
        """The job's id."""
        running = _current.get()
        return None if running is None else running.id

    @property
    def attempt(self) -> int | None:
        """Which execution of the job this is, from 1."""
        running = _current.get()
        return None if running is None else running.attempt

    def progress(
        self,
        current: float,
        total: float | None = None,
        message: str | None = None,
        unit: str | None = None,
    ) -> None:
        """See `Job.progress`."""
        running = _current.get()
        if running is not None:
            running.progress(current, total, message, unit)

    def message(self, text: str) -> None:
        """See `Job.message`."""
        running = _current.get()
        if running is not None:
            running.message(text)

    def set(self, /, **fields: Any) -> None:
        """See `Job.set`."""
        running = _current.get()
        if running is not None:
            running.set(**fields)

    def emit(self, type: str, /, **data: Any) -> None:
        """See `Job.emit`."""
        running = _current.get()
        if running is not None:
            running.emit(type, **data)


_current: ContextVar[Job | None] = ContextVar("semantik_realtime_job", default=None)
job = CurrentJob()


def current() -> Job | None:
    """The job that runs in this context."""
    return _current.get()


def enter(running: Job) -> None:
    """Make ``running`` the current job of this context, until `leave`."""
    running.outer = _current.get()
    _current.set(running)


def leave(running: Job) -> None:
    """Undo `enter`: a task that ran within another one gives the place back."""
    if _current.get() is running:
        _current.set(running.outer)


def describe_error(error: object) -> dict[str, str]:
    """Type and message of an exception: no traceback, no arguments."""
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:
        message = ""
    if name == "UnpickleableExceptionWrapper":
        # Celery's stand-in for what it cannot pickle; it knows the first name and words.
        name = str(getattr(error, "exc_cls_name", name))
    return make_error(name, message)


def make_error(type: str, message: str) -> dict[str, str]:
    """The ``error`` of a state."""
    return {"type": _clean(type)[:MAX_TYPE], "message": _clean(message)[:MAX_TEXT]}


def note_misuse(kind: str, job_id: str, what: str) -> None:
    """Count what could not be sent; log the first of each kind."""
    misuse[kind] += 1
    if misuse[kind] == 1:
        logger.warning("job: %s job=%s what=%s (logged once)", kind, job_id, _clean(what)[:200])


def _number(value: Any) -> int | float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    # Numbers of other libraries (numpy) become Python's.
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not math.isfinite(number) or abs(number) > MAX_NUMBER:
        raise ValueError("expected a finite number below 2^53")
    return number


def _line(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"expected text, got {type(text).__name__}")
    return " ".join(_clean(text[: 2 * MAX_TEXT]).split())[:MAX_TEXT]


def _clean(text: str) -> str:
    # File names may have lone surrogates, which no JSON can carry.
    return text.encode("utf-8", "replace").decode()


def _restart_in_child() -> None:
    running = _current.get()
    while running is not None:
        running.restart_in_child()
        running = running.outer


os.register_at_fork(after_in_child=_restart_in_child)
