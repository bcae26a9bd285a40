"""The events of one attempt of a job: how they are made of what the task has reported."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from semantik_realtime.clock import milliseconds_text, now_text
from semantik_realtime.core.drafts import make_checked_drafts, owners_of
from semantik_realtime.core.event import Claim, Draft
from semantik_realtime.core.lifecycle import END_TYPES, STATUS_OF_TYPE
from semantik_realtime.core.topic import check_type, user_topic
from semantik_realtime.errors import InvalidInput
from semantik_realtime.native_threads import make_rlock
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.bars import inner_bars
from semantik_realtime.worker.cancellable import Cancellable
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.job_state import JobState
from semantik_realtime.worker.task_context import TaskContext
from semantik_realtime.worker.values import BAD_VALUE, due_time, note_misuse

_serials = itertools.count()
_check_type = functools.lru_cache(maxsize=256)(check_type)


class JobEvents(TaskContext, Cancellable):
    """The part of `semantik_realtime.worker.job.Job` that makes its events, and hands them to the
    emitter. Its arguments are those of a job.
    """

    # The values at the beginning are the class's own: most stay, and cost a short task nothing.

    has_ended = False
    """Whether nothing is sent any more. Set by `end` and `_send`, never cleared."""
    workflow: str | None = None
    # None: the attempt's number is final. It is settled by the emitter's thread.
    _claim: Claim | None = None
    # The job's feeds, each with the owner that it gets.
    _feeds: Mapping[str, str | None] = MappingProxyType({})
    # What the task reported last, written without the lock by `progress` and `message` and
    # never cleared; and what of it is in `_state`, which `_update` compares by identity.
    _progress: tuple[Any, Any, Any] | None = None
    _message: str | None = None
    _known_progress: tuple[Any, Any, Any] | None = None
    _known_message: str | None = None
    # The state's version in the newest event of the job's topic, and in that of the feeds.
    _sent_version = 0
    _feed_version = 0
    # Whether the emitter will call `_send_due`, and `_send_feeds_due`. Set when that is
    # scheduled, cleared by the call.
    _is_due = False
    _is_feed_due = False
    # Whether the emitter will call `make_drafts`.
    _will_be_made = False
    # The start and the end that `make_drafts` has not made yet: when and under which lease it
    # began; the arguments of `_make_end`.
    _begun: tuple[int, str] | None = None
    _ending: tuple[str, int, Mapping[str, str] | None, str | None, Mapping[str, Any] | None] | None
    _ending = None

    def __init__(
        self,
        runtime: Runtime,
        meta: JobMeta,
        attempt: int | None,
        known: Mapping[str, Any] | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        self.runtime = runtime
        self.meta = meta
        self.id, self.key = meta.id, meta.key
        self.topic = topic = meta.topic
        self.bars = []
        # Of this object: the source of an attempt that has ended may still wait for its turn, and
        # must not be called instead of another one's of the job.
        self._serial = next(_serials)
        self._attempt = attempt
        if is_new and attempt is not None:
            token = f"{runtime.emitter.producer}-{self._serial}"
            self._claim = Claim(topic, self.key, token, attempt, meta.owner)
        # The job's own topic with the owner that it gets.
        self._topics = {topic: meta.owner}
        if meta.member is not None:
            self.workflow = meta.member.workflow
            # Of a workflow the feeds get the state of the whole.
            known = {**(known or {}), "member": meta.member.as_state()}
        elif meta.owner is not None or meta.topics:
            feeds = [] if meta.owner is None else [user_topic(meta.owner)]
            owners = owners_of(topic, [*feeds, *meta.topics], meta.owner)
            del owners[topic]
            self._feeds = owners
        self._state = JobState(attempt, meta.name, meta.queued_at, known, due_at=meta.due_at)
        # Held around each use of `_state`, and until a draft is queued: so an older state never
        # follows a newer one. Reentrant: a log record written under it may become an event.
        self._lock = make_rlock()

    @property
    def attempt(self) -> int | None:
        """The attempt's number; the expected one until the backend has assigned it."""
        number = None if self._claim is None else self._claim.number
        return number or self._attempt

    def make_drafts(self) -> list[Draft]:
        """Return the events of the attempt's start and end that are not made yet. Each once.

        A short task waits for neither: the emitter makes those of many tasks together. What the
        task reports itself comes between them (`_catch_up`).
        """
        drafts: list[Draft] = []
        with self._lock:
            self._will_be_made = False
            self.watch_if_long()
            # Cleared afterwards: a time limit may be raised here, in a task that reports something.
            if self._begun is not None:
                drafts += self._make_start(*self._begun)
                self._begun = None
            if self._ending is not None:
                drafts += self._make_end(*self._ending)
                self._ending = None
        return drafts

    # The caller holds the lock from here on.

    @property
    def _has_reported(self) -> bool:
        """Whether the task has reported what its next event has to show."""
        return self._progress is not None or self._message is not None or bool(self.bars)

    def _catch_up(self) -> None:
        """Send first what `make_drafts` would make."""
        if self._begun is not None or self._ending is not None:
            self._emit(self.make_drafts())

    def _make_start(self, milliseconds: int, holder: str) -> list[Draft]:
        at = milliseconds_text(milliseconds)
        self._state.start(at, holder)
        if self._claim is not None and not self.meta.is_redelivered:
            self._claim.started_at = at
        drafts = self._make_everywhere("job_started", at=at)
        # Before they are emitted: from its first event on a server can end the attempt.
        self.runtime.emitter.held.add(self.key, self.topic, self.meta.held(self._attempt or 1))
        return drafts

    def _make_end(
        self,
        type: str,
        milliseconds: int,
        error: Mapping[str, str] | None,
        message: str | None,
        data: Mapping[str, Any] | None,
    ) -> list[Draft]:
        self._update()
        at = milliseconds_text(milliseconds)
        self._state.end(type, at, error, message, self._due_at(type, data))
        return self._make_everywhere(type, data, at)

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

    def _make_everywhere(
        self, type: str, data: Mapping[str, Any] | None = None, at: str | None = None
    ) -> list[Draft]:
        topics = {**self._topics, **self._feeds}
        drafts = self._make(type, topics, data, at)
        if drafts is None:
            # An end must arrive, even if what the task set leaves no room for it.
            self._state.shrink()
            drafts = self._make(type, topics)
        self._sent_version = self._feed_version = self._state.version
        return drafts or []

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
        has_state: bool = True,
    ) -> bool:
        """Send an event to ``topics``; return False if it could not be made."""
        self.watch_if_long()
        drafts = self._make(type, topics, data, has_state=has_state)
        if drafts is not None:
            self._emit(drafts)
        return drafts is not None

    def _emit(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            self.runtime.emitter.emit(draft, can_wait=draft.type in STATUS_OF_TYPE)

    def _make(
        self,
        type: str,
        topics: Mapping[str, str | None],
        data: Mapping[str, Any] | None = None,
        at: str | None = None,
        has_state: bool = True,
    ) -> list[Draft] | None:
        """Return an event's drafts; none if the job was deleted. None: it could not be made."""
        claim = self._claim
        if claim is not None and claim.number is not None:
            if claim.number == 0:
                # The job was deleted. The task runs all the same.
                self.has_ended = True
                return []
            self._attempt, self._claim = claim.number, None
            self._state.set_attempt(claim.number)
            claim = None
        try:
            return make_checked_drafts(
                topics,
                type if type in STATUS_OF_TYPE else _check_type(type),
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
            return None
