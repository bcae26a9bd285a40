"""The requests to cancel, as a process that runs tasks receives them.

A thread of its own with a loop of its own reads the topic of all requests, so
no task waits for the backend. It starts with the first job that is `watch`\\ ed,
and ends with the process or by `close`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol
from weakref import WeakValueDictionary

from semantik_realtime.backends.server_clock import read_server_time
from semantik_realtime.backoff import Backoff
from semantik_realtime.clock import time_text
from semantik_realtime.core.cancelling import CONTROL_TOPIC
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.limits import MAX_HISTORY
from semantik_realtime.forks import on_fork
from semantik_realtime.hookspecs import Backend
from semantik_realtime.native_threads import make_lock, make_rlock, make_thread
from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text

logger = logging.getLogger(__name__)

KEPT_SECONDS = 10_800.0
"""How long a request counts: as long as Celery's workers remember a revoked task."""
MAX_REQUESTS = MAX_HISTORY
"""Requests that a process remembers; of more, the newest."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 30.0
CLOSE_SECONDS = 0.5
"""How long `close` waits for the thread."""


class RunningJob(Protocol):
    """A job that runs in this process: `semantik_realtime.worker.job.Job`."""

    id: str
    workflow: str | None
    """The id of the workflow that it belongs to; a request for that one is one for this job."""
    runtime: Runtime

    def request_cancel(self) -> None:
        """Note that the job is being cancelled. Called from any thread; idempotent."""


class CancelListener:
    """Receives the requests of one process, and passes them on to the jobs that it runs."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._jobs: WeakValueDictionary[str, RunningJob] = WeakValueDictionary()
        # The jobs whose cancellation was requested, the newest last. At most `MAX_REQUESTS`.
        self._requested: OrderedDict[str, None] = OrderedDict()
        # Held while `_jobs` and `_requested` are compared, so that no request is missed between.
        self._lock = make_lock()
        # Set by the thread; None before it has a loop.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading: asyncio.Task[None] | None = None
        self._thread = make_thread(self._run, "semantik-realtime-cancel")

    def start(self) -> None:
        """Start the thread, once."""
        self._thread.start()

    def watch(self, job: RunningJob) -> None:
        """Pass on requests for ``job`` from now on, and one that has come already."""
        with self._lock:
            self._jobs[job.id] = job
            is_requested = job.id in self._requested or job.workflow in self._requested
        if is_requested:
            job.request_cancel()

    def has_request(self, job_id: str) -> bool:
        """Return True if a request for this job has come."""
        with self._lock:
            return job_id in self._requested

    def close(self) -> None:
        """End the thread."""
        loop, reading = self._loop, self._reading
        if loop is not None and reading is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(reading.cancel)
            self._thread.join(CLOSE_SECONDS)

    # The sink of the backend, on the loop of the thread.

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        # They were appended just now, whatever the clock of the host says that appended them.
        for job_id in requested_jobs(events, since=""):
            self._receive(job_id)

    def interrupted(self, topic: str) -> None:
        self._is_behind.set()

    def gone(self, topic: str) -> None:
        return

    def _receive(self, job_id: str) -> None:
        with self._lock:
            self._requested[job_id] = None
            self._requested.move_to_end(job_id)
            if len(self._requested) > MAX_REQUESTS:
                self._requested.popitem(last=False)
            jobs = [job for job in self._jobs.values() if job_id in (job.id, job.workflow)]
        for job in jobs:
            job.request_cancel()

    def _run(self) -> None:
        async def read() -> None:
            self._loop, self._reading = asyncio.get_running_loop(), asyncio.current_task()
            self._is_behind = asyncio.Event()
            await self._read_for_ever()

        try:
            asyncio.run(read())
        except asyncio.CancelledError:
            pass
        except Exception:
            logger.exception("listener: ended, running tasks receive no request to cancel")

    async def _read_for_ever(self) -> None:
        backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        while (backend := self.runtime.second_backend()) is not None:
            try:
                await self._follow(backend, backoff)
            except Exception as error:
                if not backoff.failures:
                    logger.warning("listener: backend fails error=%s", mask_text(repr(error)))
            finally:
                await backend.close()
            await asyncio.sleep(backoff.next_seconds())

    async def _follow(self, backend: Backend, backoff: Backoff) -> None:
        seconds = self.runtime.settings.timeout_seconds
        async with asyncio.timeout(seconds):
            await backend.open()
            await backend.subscribe(CONTROL_TOPIC, self)
        while True:
            self._is_behind.clear()
            async with asyncio.timeout(seconds):
                requests = await read_requests(backend)
            for job_id in requests:
                self._receive(job_id)
            if backoff.failures:
                logger.info("listener: backend is back")
                backoff.reset()
            await self._is_behind.wait()


async def read_requests(backend: Backend) -> list[str]:
    """Return the jobs whose cancellation was requested in the last `KEPT_SECONDS`, oldest first.

    By the server's clock: other hosts have written the times, and this one's may be wrong.

    Raises:
        BackendError: the backend does not answer.
    """
    snapshot = await backend.snapshot(CONTROL_TOPIC, None, MAX_HISTORY)
    if not snapshot.events:
        return []
    return requested_jobs(
        snapshot.events, since=time_text(await read_server_time(backend) - KEPT_SECONDS)
    )


def requested_jobs(events: Sequence[Event], since: str) -> list[str]:
    """Return the jobs of the requests among ``events`` that still count, oldest first.

    ``since``: the oldest time that counts, as events have it.
    """
    heads = [event.head() for event in events]
    return [head.key for head in heads if head.type == "job_cancelling" and head.time >= since]


_listener: CancelListener | None = None
"""That of this process, with the runtime of its newest job. None after a fork."""
_start_lock = make_rlock()


def is_requested(job_id: object) -> bool:
    """Return True if this process has received a request to cancel this job.

    ``job_id`` may be what a header has, so anything.
    """
    listener = _listener
    return listener is not None and isinstance(job_id, str) and listener.has_request(job_id)


def watch(job: RunningJob) -> None:
    """Make requests to cancel ``job`` reach it. Returns at once; the first call starts a thread."""
    global _listener
    listener = _listener
    if listener is None or listener.runtime is not job.runtime:
        with _start_lock:
            if _listener is None or _listener.runtime is not job.runtime:
                close()
                _listener = CancelListener(job.runtime)
                _listener.start()
            listener = _listener
    listener.watch(job)


def close() -> None:
    """End the thread of this process, if there is one."""
    if _listener is not None:
        _listener.close()


def _restart_in_child() -> None:
    global _listener, _start_lock
    # Threads do not survive a fork, and another one may have held the lock.
    _listener, _start_lock = None, make_rlock()


on_fork(after_in_child=_restart_in_child)
