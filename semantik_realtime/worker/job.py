"""One attempt of a job in the process that runs it, or that reports how it ended.

Nothing here raises into a task or waits for a server: what cannot be sent is
counted in `semantik_realtime.worker.values.misuse`, logged once for each kind,
and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semantik_realtime.clock import milliseconds_text, now_milliseconds
from semantik_realtime.core.lifecycle import (
    END_TYPES,
    LOG,
    PROGRESS,
    RESERVED_TYPES,
)
from semantik_realtime.native_threads import make_rlock
from semantik_realtime.worker.event_types import declared, read_event
from semantik_realtime.worker.job_events import JobEvents
from semantik_realtime.worker.job_meta import JobMeta as JobMeta
from semantik_realtime.worker.members import tallies
from semantik_realtime.worker.values import encode_fields, note_misuse


class Job(JobEvents):
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
            self._catch_up()
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
            self._catch_up()
            self._update()
            # The feeds get a changed state from `_send_due`, which every change schedules.
            if self._send(type, self._topics, data):
                self._sent_version = self._state.version

    def begin(self) -> None:
        """Send that the attempt has started. The event is made later, by `make_drafts`."""
        emitter = self.runtime.emitter
        self.note_start()
        self._begun = now_milliseconds(), emitter.held.holder
        self._will_be_made = True
        emitter.emit_later(self.make_drafts)

    def queue(self) -> None:
        """Send that the job waits for a worker. May wait as `emit` does."""
        if self.meta.member is not None and self.meta.member.is_counted(self.runtime):
            # Too many may wait for each to have a key.
            return
        self.runtime.emitter.wait_for_room()
        with self._lock:
            self._emit(self._make_everywhere("job_queued"))

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
            self._ending = type, now_milliseconds(), error, message, data
            if self._has_reported or self.meta.member is not None:
                # A member is counted once its end is queued, and what is reported from now on
                # must not be in its state.
                self._catch_up()
            elif not self._will_be_made:
                self.runtime.emitter.emit_later(self.make_drafts)
            # Last: if a time limit is raised before, the end is sent again.
            self.has_ended = True
        if self.meta.member is not None and type in END_TYPES:
            tallies.count(self.runtime, self.meta.member, self.meta.owner, type, self.key)

    def send_log(self, data: Mapping[str, Any]) -> None:
        """Send a log record on the job's topic; the state stays as it is. Never waits."""
        with self._lock:
            self._catch_up()
            if not self.has_ended:
                self._send(LOG, self._topics, data, has_state=False)

    def request_cancel(self) -> None:
        """Note that the job is being cancelled. Its states show that until it ends. Idempotent."""
        with self._lock:
            if self.has_ended or self.cancel_requested:
                return
            self._catch_up()
            self.cancel_requested = True
            self._state.cancel()
        if not self._is_due:
            self._schedule()

    def send_pending(self) -> None:
        """Send what is not yet sent, without waiting until it is due."""
        with self._lock:
            self._catch_up()
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
        begun, self._begun = self._begun, None
        if begun is not None:
            # The parent sends it.
            self._state.start(milliseconds_text(begun[0]), begun[1])

    def _schedule(self) -> None:
        self._is_due = True
        runtime = self.runtime
        runtime.emitter.throttle(self._serial, runtime.settings.progress_seconds, self._send_due)

    def _schedule_feeds(self) -> None:
        if not self._feeds or self._is_feed_due:
            return
        self._is_feed_due = True
        runtime = self.runtime
        runtime.emitter.throttle(
            (self._serial, "feeds"), runtime.settings.feed_seconds, self._send_feeds_due
        )

    # The emitter's thread calls these two.

    def _send_due(self) -> None:
        self._is_due = False
        with self._lock:
            self._catch_up()
            self._send_progress()
            if self._feed_version != self._state.version:
                self._schedule_feeds()

    def _send_feeds_due(self) -> None:
        self._is_feed_due = False
        with self._lock:
            self._catch_up()
            self._send_feeds()

    # The caller holds the lock from here on.

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
