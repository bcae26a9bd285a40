"""One attempt of a job in the process that runs it, or that reports how it ended.

Nothing here raises into a task or waits for a server: what cannot be sent is
counted in `semantik_realtime.worker.values.misuse`, logged once for each kind,
and left out.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.core.drafts import make_checked_drafts, owners_of
from semantik_realtime.core.event import Claim
from semantik_realtime.core.lifecycle import (
    END_TYPES,
    LOG,
    PROGRESS,
    RESERVED_TYPES,
    STATUS_OF_TYPE,
)
from semantik_realtime.core.topic import user_topic
from semantik_realtime.errors import InvalidInput
from semantik_realtime.native_threads import make_rlock
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.bars import inner_bars
from semantik_realtime.worker.cancellable import Cancellable
from semantik_realtime.worker.event_types import declared, read_event
from semantik_realtime.worker.job_meta import JobMeta as JobMeta
from semantik_realtime.worker.job_state import JobState
from semantik_realtime.worker.members import tallies
from semantik_realtime.worker.task_context import TaskContext
from semantik_realtime.worker.values import BAD_VALUE, due_time, encode_fields, note_misuse

_serials = itertools.count()


class Job(TaskContext, Cancellable):
    """One attempt of a job, as this process sees it.

    Its methods may be called from any thread. The job's topic gets every
    event; the feeds get those of its life and, more slowly, its progress.
    Each event carries the whole state.

    Args:
        runtime: sends the events.
        meta: the job.
        attempt: the attempt's number; 0 while queued, None for the newest one.
        known: the state so far, if another process made it.
        is_new: whether the attempt begins here. Then ``attempt`` is the number that is
            expected, until the backend has assigned one.

    Raises:
        TopicError: the id cannot be the name of a topic.
    """

    def __init__(
        self,
        runtime: Runtime,
        meta: JobMeta,
        attempt: int | None,
        known: Mapping[str, Any] | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        super().__init__()
        self.runtime = runtime
        self.meta = meta
        self.id, self.key = meta.id, meta.key
        self.topic = meta.topic
        self.workflow = None if meta.member is None else meta.member.workflow
        self.has_ended = False
        """Whether nothing is sent any more. Set by `end` and `_send`, never cleared."""
        serial = next(_serials)
        self._attempt = attempt
        # None: the attempt's number is final. It is settled by the emitter's thread.
        self._claim: Claim | None = None
        if is_new and attempt is not None:
            token = f"{runtime.emitter.producer}-{serial}"
            self._claim = Claim(self.topic, self.key, token, expected=attempt, owner=meta.owner)
        # The job's own topic, and its feeds, each with the owner that it gets.
        self._topics = {self.topic: meta.owner}
        self._feeds: dict[str, str | None] = {}
        if meta.member is not None:
            # Of a workflow the feeds get the state of the whole.
            known = {**(known or {}), "member": meta.member.as_state()}
        elif meta.owner is not None or meta.topics:
            feeds = [] if meta.owner is None else [user_topic(meta.owner)]
            self._feeds = owners_of(self.topic, [*feeds, *meta.topics], meta.owner)
            del self._feeds[self.topic]
        self._state = JobState(attempt, meta.name, meta.queued_at, known, due_at=meta.due_at)
        # Held around each use of `_state`, and until a draft is queued: so an older state never
        # follows a newer one. Reentrant: a log record written under it may become an event.
        self._lock = make_rlock()
        # What the task reported last, written without the lock by `progress` and `message` and
        # never cleared; and what of it is in `_state`, which `_update` compares by identity.
        self._progress: tuple[Any, Any, Any] | None = None
        self._message: str | None = None
        self._known_progress: tuple[Any, Any, Any] | None = None
        self._known_message: str | None = None
        # The state's version in the newest event of the job's topic, and in that of the feeds.
        self._sent_version = 0
        self._feed_version = 0
        # Whether the emitter will call `_send_due`, and `_send_feeds_due`. Set when that is
        # scheduled, cleared by the call.
        self._is_due = False
        self._is_feed_due = False
        # Keys of the throttle. Not the id alone: the source of an attempt that has ended may
        # still wait under its key, and would be called instead of this one.
        self._throttle_key = (self.id, serial)
        self._feed_throttle_key = (self.id, serial, "feeds")

    @property
    def attempt(self) -> int | None:
        """The attempt's number; the expected one until the backend has assigned it."""
        number = None if self._claim is None else self._claim.number
        return number or self._attempt

    def progress(
        self,
        current: float,
        total: float | None = None,
        message: str | None = None,
        unit: str | None = None,
    ) -> None:
        """Report how far the job is. Costs less than a microsecond; sent when it is due.

        Each call replaces the whole progress: without ``total`` the total is
        unknown. Without ``message`` the last message stays.
        """
        if message is not None:
            self._message = message
        self._progress = (current, total, unit)
        # The value first, then the flag: `_send_due` clears the flag before it reads the value.
        if not self._is_due:
            self._schedule()

    def message(self, text: str) -> None:
        """Report in one line what the job is doing."""
        self._message = text
        if not self._is_due:
            self._schedule()

    def set(self, /, **fields: Any) -> None:
        """Set members of the state's ``fields``; the others stay."""
        encoded = encode_fields(fields, self.id)
        with self._lock:
            try:
                has_changed = self._state.set_fields(
                    encoded, self.runtime.settings.max_event_bytes // 2
                )
            except ValueError as error:
                note_misuse("fields too big", self.id, str(error))
                return
        if has_changed and not self._is_due:
            self._schedule()

    def emit(self, type: Any, /, **data: Any) -> None:
        """Send an event of the application's own on the job's topic.

        Types are lower-case words, ``file_completed``; those of a job's life are refused. An
        object of a class with a shape is an event of the type that belongs to its class.
        Where events come faster than the backend takes them, a call waits, at most a
        second (``Emitter.wait_for_room``); while the backend is away it does not.
        """
        if type.__class__ is not str or type in declared:
            found = read_event(type, data, self.id)
            if found is None:
                return
            type, data = found[0], dict(found[1])
        if type in RESERVED_TYPES:
            note_misuse("reserved event type", self.id, type)
            return
        # Before the lock is taken: the emitter's thread needs it to go on.
        self.runtime.emitter.wait_for_room()
        with self._lock:
            if self.has_ended:
                return
            self._update()
            # The feeds get a changed state from `_send_due`, which every change schedules.
            if self._send(type, self._topics, data):
                self._sent_version = self._state.version

    def begin(self) -> None:
        """Send that the attempt has started."""
        with self._lock:
            if self.has_ended:
                return
            held, now = self.runtime.emitter.held, now_text()
            # Before the draft: from its first event on a server can end the attempt.
            held.add(self.key, self.topic, self.meta.held(self._attempt or 1))
            self._state.start(now, held.holder)
            if self._claim is not None and not self.meta.is_redelivered:
                self._claim.started_at = now
            self.note_start()
            self._send_everywhere("job_started", at=now)

    def queue(self) -> None:
        """Send that the job waits for a worker. May wait as `emit` does."""
        if self.meta.member is not None and self.meta.member.is_counted(self.runtime):
            # Too many may wait for each to have a key.
            return
        self.runtime.emitter.wait_for_room()
        with self._lock:
            self._send_everywhere("job_queued")

    def end(
        self,
        type: str,
        *,
        error: dict[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        message: str | None = None,
    ) -> None:
        """Send how the attempt ended, once; nothing is sent afterwards.

        ``job_retrying`` ends the attempt but not the job.
        """
        with self._lock:
            if self.has_ended or self.replacements:
                return
            type, data = self.actual_end(type, data)
            if self.log is not None:
                self.log.finish()
            self._update()
            now = now_text()
            self._state.end(type, now, error, message, self._due_at(type, data))
            self._send_everywhere(type, data, now)
            self.has_ended = True
        if self.meta.member is not None and type in END_TYPES:
            tallies.count(self.runtime, self.meta.member, self.meta.owner, type, self.key)

    def send_log(self, data: Mapping[str, Any]) -> None:
        """Send a log record on the job's topic; the state stays as it is. Never waits."""
        with self._lock:
            if not self.has_ended:
                self._send(LOG, self._topics, data, has_state=False)

    def request_cancel(self) -> None:
        """Note that the job is being cancelled. Its states show that until it ends. Idempotent."""
        with self._lock:
            if self.has_ended or self.cancel_requested:
                return
            self.cancel_requested = True
            self._state.cancel()
        if not self._is_due:
            self._schedule()

    def send_pending(self) -> None:
        """Send what is not yet sent, without waiting until it is due."""
        with self._lock:
            self._send_progress()
            self._send_feeds()

    def schedule(self) -> None:
        """Have the emitter look at the job's bars when it is due."""
        if not self._is_due:
            self._schedule()

    @property
    def last_message(self) -> str | None:
        """The message as it was reported last."""
        return self._message

    def restart_in_child(self) -> None:
        """After a fork: forget what other threads of the parent held or had scheduled."""
        self._lock = make_rlock()
        self._is_due = False
        self._is_feed_due = False
        self._is_watched = False

    def _schedule(self) -> None:
        self._is_due = True
        runtime = self.runtime
        runtime.emitter.throttle(
            self._throttle_key, runtime.settings.progress_seconds, self._send_due
        )

    def _schedule_feeds(self) -> None:
        if not self._feeds or self._is_feed_due:
            return
        self._is_feed_due = True
        runtime = self.runtime
        runtime.emitter.throttle(
            self._feed_throttle_key, runtime.settings.feed_seconds, self._send_feeds_due
        )

    # The emitter's thread calls these two.

    def _send_due(self) -> None:
        self._is_due = False
        with self._lock:
            self._send_progress()
            if self._feed_version != self._state.version:
                self._schedule_feeds()

    def _send_feeds_due(self) -> None:
        self._is_feed_due = False
        with self._lock:
            self._send_feeds()

    # The caller holds the lock from here on.

    def _update(self) -> None:
        """Bring the state up to date with what the task reported last."""
        # Compared, never cleared: another thread may be reporting at this moment.
        progress = self._progress
        if progress is not None and progress is not self._known_progress:
            self._known_progress = progress
            try:
                self._state.set_progress(*progress, time.monotonic())
            except BAD_VALUE as error:
                note_misuse("progress is not a number", self.id, str(error))
        message = self._message
        if message is not None and message is not self._known_message:
            self._known_message = message
            try:
                self._state.set_message(message)
            except BAD_VALUE as error:
                note_misuse("message is not text", self.id, str(error))
        if len(self.bars) > 1 or self._state.inner:
            self._state.set_inner(inner_bars(self.bars, self.id))

    def _send_progress(self) -> None:
        if self.has_ended:
            return
        self._update()
        version = self._state.version
        if self._sent_version != version and self._send(PROGRESS, self._topics):
            self._sent_version = version

    def _send_feeds(self) -> None:
        if self.has_ended or self._feed_version == self._state.version or not self._feeds:
            return
        self._update()
        if self._send(PROGRESS, self._feeds):
            self._feed_version = self._state.version

    def _send_everywhere(
        self, type: str, data: Mapping[str, Any] | None = None, at: str | None = None
    ) -> None:
        topics = self._topics | self._feeds
        if not self._send(type, topics, data, at):
            # An end must arrive, even if what the task set leaves no room for it.
            self._state.shrink()
            self._send(type, topics)
        self._sent_version = self._feed_version = self._state.version

    def _due_at(self, type: str, data: Mapping[str, Any] | None) -> float | None:
        """Return when the job goes on, if the event says that it waits for a time."""
        if type == "job_queued":
            return self.meta.due_at
        return due_time((data or {}).get("delay_seconds")) if type == "job_retrying" else None

    def _send(
        self,
        type: str,
        topics: Mapping[str, str | None],
        data: Mapping[str, Any] | None = None,
        at: str | None = None,
        has_state: bool = True,
    ) -> bool:
        self.watch_if_long()
        claim = self._claim
        if claim is not None and claim.number is not None:
            if claim.number == 0:
                # The job was deleted. The task runs all the same.
                self.has_ended = True
                return True
            self._attempt, self._claim = claim.number, None
            self._state.set_attempt(claim.number)
            claim = None
        try:
            drafts = make_checked_drafts(
                topics,
                type,
                at or now_text(),
                self.key,
                state=self._state.members if has_state else msgspec.UNSET,
                data=data,
                job=self.key,
                attempt=self._attempt,
                claim=claim,
                terminal=type in END_TYPES,
                due_at=self._due_at(type, data),
                max_bytes=self.runtime.settings.max_event_bytes,
            )
        except BAD_VALUE as error:
            kind = error.code if isinstance(error, InvalidInput) else "bad_event"
            note_misuse(f"event dropped, {kind}", self.id, str(error))
            return False
        emit, can_wait = self.runtime.emitter.emit, type in STATUS_OF_TYPE
        for draft in drafts:
            emit(draft, can_wait=can_wait)
        return True
