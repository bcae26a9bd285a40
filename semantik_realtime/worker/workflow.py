"""Follows the workflows whose tasks a worker receives, and ends them.

In the process that receives the tasks (a worker's main process) one thread reads the topic of
each of these workflows from time to time. It publishes how far the whole is, and its end. No task
waits for it. Several workers may do so for one workflow: each reads what is in the log, and the
fence refuses all ends but the first. The process holds the workflow meanwhile, so that a web
server ends it if the process dies.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from celery import signals

from semantik_realtime.clock import now_text
from semantik_realtime.core.drafts import make_drafts, owners_of
from semantik_realtime.core.event import Event
from semantik_realtime.core.leases import FOLLOWED, HeldJob
from semantik_realtime.core.lifecycle import PROGRESS, STATUS_OF_TYPE, has_ended
from semantik_realtime.core.topic import job_topic, user_topic
from semantik_realtime.core.workflow import (
    end_of,
    progress_of,
    reopened,
    tallies_to_unite,
    uncounted,
)
from semantik_realtime.emitter.registry import seconds_to_end
from semantik_realtime.forks import on_fork
from semantik_realtime.hookspecs import Backend
from semantik_realtime.native_threads import Thread, make_event, make_rlock, make_thread
from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text
from semantik_realtime.worker.acceptance import is_active
from semantik_realtime.worker.headers import WORKFLOW, is_job, read_header, read_job_meta
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.members import tallies
from semantik_realtime.worker.revokes import is_revoked, note_revoked

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""How often the thread looks whether tasks have ended; and the first pause after one has."""
PACE_SECONDS = 1.0
"""Least pause between two readings of a workflow while tasks of it are here."""
LONGEST_PAUSE_SECONDS = 10.0
"""Longest pause while nothing happens; each is twice as long as the one before."""
FOLLOW_SECONDS = 60.0
"""How long a workflow is followed after its last task here has ended."""
MAX_FOLLOWED = 1000
"""Workflows that a process follows. For a further one it leaves one of which no task is here; if
there is none, it does not follow it, and logs that once."""


class _Followed:
    """A workflow of which this process has received tasks. Only the thread uses it."""

    def __init__(self, workflow: str, owner: str | None, others: list[str]) -> None:
        self.id = workflow
        self.owner = owner
        topic = job_topic(workflow)
        self.topic = topic
        feeds = [] if owner is None else [user_topic(owner)]
        self.topics = owners_of(topic, [*feeds, *others], owner)
        self.tasks_here = 0
        self.has_news = True
        self.has_ended = False
        # The key under which this process holds it, and the record.
        self.held_as = f"{FOLLOWED}{workflow}"
        self.record = HeldJob(
            owner=owner, topics=others, expected=0, workflow=workflow, is_whole=True
        ).encode()
        # Whether this process has sent its end, which may still be refused.
        self.has_sent_end = False
        self.read_at = 0.0
        self.news_at = time.monotonic()
        self.pause_seconds = LOOK_SECONDS

    def note(self) -> None:
        """A task of it has come or has ended."""
        self.has_news = True
        self.news_at = time.monotonic()
        self.pause_seconds = LOOK_SECONDS

    def is_due(self, now: float) -> bool:
        """Return True if it is time to read it."""
        pause = self.pause_seconds
        if self.has_news and self.tasks_here and self.read_at:
            pause = PACE_SECONDS
        return now - max(self.read_at, self.news_at if not self.read_at else 0.0) >= pause

    def is_over(self, now: float) -> bool:
        """Return True if nothing more is to be expected here."""
        if self.tasks_here or self.has_news:
            return False
        return self.has_ended or now - self.news_at > FOLLOW_SECONDS


class WorkflowFollower:
    """The thread that follows workflows. One in each process that receives tasks.

    Args:
        runtime: returns the process's runtime, or None while the tracker is off.
    """

    def __init__(self, runtime: Callable[[], Runtime | None]) -> None:
        self._runtime = runtime
        # What has happened to tasks: the workflow, and 1 received, -1 released, 0 ended. Appended
        # by any thread, also by the garbage collector, so without a lock.
        self._news: deque[tuple[JobMeta | str, int]] = deque()
        # Keeps each reference to a request until the request is released, with the id that revokes
        # its workflow.
        self._references: dict[int, tuple[str, weakref.ref[Any]]] = {}
        self._serials = itertools.count()
        self._followed: dict[str, _Followed] = {}
        self._begin()
        # Weak: a tracker of tests ends before the process does.
        begin = weakref.WeakMethod(self._begin)
        on_fork(after_in_child=lambda: (restart := begin()) is not None and restart())

    def _begin(self) -> None:
        self._news.clear()
        self._references.clear()
        self._followed.clear()
        self._thread: Thread | None = None
        self._start_lock = make_rlock()
        self._wake = make_event()
        # Never set: what waits for it pauses.
        self._pause = make_event()
        self._closing = False
        # Whether the last reading failed: then the next failure is not logged.
        self._fails = False
        # Whether a workflow was not followed; logged once.
        self._is_full = False

    def receivers(self) -> list[tuple[Any, Callable[..., None]]]:
        """Return each signal with its receiver."""
        return [
            (signals.worker_process_shutdown, self._process_shutdown),
            (signals.worker_shutdown, self._worker_shutdown),
        ]

    def received(self, request: Any) -> str | None:
        """Follow the workflow of a task that this process has received, until it has ended.

        Returns its id; None: the task is a member of none.
        """
        if not is_job(request.name) or read_header(request.request_dict, WORKFLOW) is None:
            return None
        meta = read_job_meta(request.request_dict, id=request.id, name=request.name)
        if meta is None or meta.member is None:
            return None
        serial = next(self._serials)
        workflow, revoked_as = meta.member.workflow, meta.member.revoked_as

        def released(_: object) -> None:
            # The garbage collector may call it anywhere, so it takes no lock.
            self._references.pop(serial, None)
            self._news.append((workflow, -1))

        self._references[serial] = revoked_as, weakref.ref(request, released)
        if is_revoked(revoked_as):
            # Celery discards it before it runs.
            note_revoked([request.id])
        self._news.append((meta, 1))
        self._wake_thread()
        return workflow

    def revoked(self, id: str, on_revoked: Callable[[str], None]) -> None:
        """An id is revoked. If it is a workflow's, so are its tasks that wait here, and
        ``on_revoked`` gets each.
        """
        for revoked_as, reference in list(self._references.values()):
            request = reference() if revoked_as == id else None
            if request is not None:
                note_revoked([request.id])
                on_revoked(request.id)

    def running(self, workflow: str) -> list[str]:
        """Return the tasks of a workflow that the pool of this worker has begun."""
        requests = [
            reference() for name, reference in list(self._references.values()) if name == workflow
        ]
        return [one.id for one in requests if one is not None and is_active(one)]

    def ended(self, meta: JobMeta) -> None:
        """This process has sent the end of a task that it may not have received."""
        if meta.member is not None:
            self._news.append((meta, 0))
            self._wake_thread()

    def close(self, timeout_seconds: float) -> None:
        """Read what is due for the last time, and end the thread."""
        thread = self._thread
        if thread is not None:
            self._closing = True
            self._wake.set()
            thread.join(timeout_seconds)

    def _process_shutdown(self, **_: Any) -> None:
        tallies.send()

    def _worker_shutdown(self, **_: Any) -> None:
        runtime = self._runtime()
        if runtime is not None:
            self.close(seconds_to_end(runtime.settings.flush_seconds))
            tallies.send()

    def _wake_thread(self) -> None:
        with self._start_lock:
            if self._thread is None:
                thread = make_thread(self._run, "semantik-realtime-workflows")
                thread.start()
                self._thread = thread
        self._wake.set()

    def _run(self) -> None:
        while True:
            is_last = self._closing
            try:
                self._take_news()
                now = time.monotonic()
                due = [
                    each
                    for each in self._followed.values()
                    if each.is_due(now) or (is_last and not each.has_ended)
                ]
                runtime = self._runtime()
                if due and runtime is not None:
                    asyncio.run(self._read(runtime, due))
                for each in list(self._followed.values()):
                    if each.is_over(time.monotonic()):
                        del self._followed[each.id]
                        self._release(each)
                    elif is_last and (each.has_ended or each.has_sent_end):
                        # The others stay held: the last of their tasks here may end after this.
                        self._release(each)
            except Exception:
                # The thread must outlive any error of ours: a workflow's end needs it.
                logger.exception("workflow: step failed")
            if is_last:
                return
            self._wake.wait(LOOK_SECONDS if self._followed or self._references else None)
            self._wake.clear()
            if not self._closing:
                # One look at many tasks that come or end together.
                self._pause.wait(LOOK_SECONDS / 10)

    def _take_news(self) -> None:
        while self._news:
            about, change = self._news.popleft()
            if isinstance(about, str):
                each = self._followed.get(about)
            else:
                assert about.member is not None
                workflow = about.member.workflow
                each = self._followed.get(workflow)
                if each is None and self._make_room(workflow):
                    each = _Followed(workflow, about.owner, list(about.topics))
                    self._followed[workflow] = each
                    self._hold(each)
            if each is not None:
                each.tasks_here = max(0, each.tasks_here + change)
                each.note()

    def _make_room(self, workflow: str) -> bool:
        """Return True if one more workflow can be followed."""
        if len(self._followed) < MAX_FOLLOWED:
            return True
        for each in self._followed.values():
            if not each.tasks_here and not each.has_news:
                # The worker that gets its next task follows it.
                del self._followed[each.id]
                self._release(each)
                return True
        if not self._is_full:
            self._is_full = True
            logger.warning(
                "workflow: not followed job=%s, %d have tasks here already: its end may be missing "
                "(logged once)",
                workflow,
                MAX_FOLLOWED,
            )
        return False

    def _hold(self, each: _Followed) -> None:
        """Have a web server look at the workflow if this process dies."""
        runtime = self._runtime()
        if runtime is not None:
            held = runtime.emitter.held
            # In the emitter's thread, which tells the backend next.
            runtime.emitter.throttle(
                (each.id, "held"), 0, lambda: held.add(each.held_as, each.topic, each.record)
            )

    def _release(self, each: _Followed) -> None:
        runtime = self._runtime()
        if runtime is not None:
            runtime.emitter.held.remove(each.held_as)

    async def _read(self, runtime: Runtime, due: list[_Followed]) -> None:
        """Read these workflows, and publish what follows from their states."""
        seconds = runtime.settings.timeout_seconds
        made = runtime.second_backend()
        backend = runtime.unguarded if made is None else made
        try:
            if made is not None:
                await asyncio.wait_for(made.open(), seconds)
            for each in due:
                states = await asyncio.wait_for(_states_of(backend, each.topic), seconds)
                each.read_at = time.monotonic()
                each.pause_seconds = min(2 * each.pause_seconds, LONGEST_PAUSE_SECONDS)
                each.has_news = False
                publish(runtime, each, states)
            self._fails = False
        except Exception as error:
            now = time.monotonic()
            for each in due:
                # Not over: what has happened meanwhile is read when the backend answers.
                each.read_at = each.news_at = now
                each.pause_seconds = PACE_SECONDS
            if not self._fails:
                self._fails = True
                logger.warning("workflow: not read error=%s", mask_text(repr(error)))
        finally:
            if made is not None:
                await asyncio.wait_for(made.close(), seconds)


async def _states_of(backend: Backend, topic: str) -> dict[str, Any]:
    snapshot = await backend.snapshot(topic, None, 0)
    states = {key: Event(0, 0, event).head().state for key, event in snapshot.states.items()}
    return {
        key: msgspec.json.decode(state)
        for key, state in states.items()
        if isinstance(state, msgspec.Raw)
    }


def publish(runtime: Runtime, each: _Followed, states: Mapping[str, Any]) -> None:
    """Publish how far a workflow is, or how it has ended; and count what is not counted."""
    now, now_ms = now_text(), time.time_ns() // 1_000_000
    again = reopened(states, each.id)
    if again is not None:
        states = {**states, each.id: again}
    own = states.get(each.id)
    own = own if isinstance(own, Mapping) else {}
    each.has_ended = has_ended(own)
    tally = tallies.of_workflow(runtime, each.id, each.owner)
    for giver, number, key, _ in uncounted(states, each.id, runtime.settings.max_keys, now_ms):
        tally.add(giver, number, "done", 0, key)
    for key in tallies_to_unite(states, tally.key):
        tally.unite(key, states[key].get("tally"))
    state = progress_of(states, each.id, now)
    ending = end_of(states, each.id)
    if ending is not None:
        state = {**own, **(state or {}), "status": STATUS_OF_TYPE[ending.type], "ended_at": now}
        attempt = state.get("attempt")
        state["attempt"] = attempt if isinstance(attempt, int) and attempt > 0 else 1
        if ending.error is not None:
            state["error"] = ending.error
        each.has_sent_end = True
    if state is None:
        return
    if ending is None and is_revoked(each.id):
        # Somebody has cancelled it, but its states may have been read before that.
        state["status"] = "cancelling"
    if state == own:
        return
    before = None if again is not None else own.get("status")
    if ending is not None:
        type = ending.type
    elif state["status"] == "cancelling":
        type = PROGRESS if before == "cancelling" else "job_cancelling"
    else:
        type = "job_started" if before in (None, "queued") else PROGRESS
    for draft in make_drafts(
        each.topics,
        type,
        now,
        each.id,
        state=state,
        job=each.id,
        attempt=state["attempt"],
        terminal=ending is not None,
        max_bytes=runtime.settings.max_event_bytes,
    ):
        runtime.emitter.emit(draft)
