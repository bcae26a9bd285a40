"""Jobs that wait for a worker for too long: their message is gone, or nobody consumes the queue.

No server looks for them. A server that reads the states of a topic, or has it
watched, ends the ones that it finds there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

import msgspec

from semantik_realtime.backends.server_clock import read_server_time
from semantik_realtime.clock import time_text
from semantik_realtime.core.leases import HeldJob
from semantik_realtime.core.lost import waits_too_long
from semantik_realtime.core.topic import plain_id, split_topic
from semantik_realtime.errors import BackendError
from semantik_realtime.hookspecs import Backend, Snapshot
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.job_ends import JobEnds, stored_state, topic_of

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 60.0
"""Between two looks at the states of one topic."""
MAX_TOPICS = 10_000
"""Topics of which the last look is remembered."""
MAX_FOUND = 1000
"""Jobs that may wait to be ended."""
_SHARE = 24
"""A watched topic is read so many times while a job may wait."""
_SWEEP_SECONDS = (1.0, 3600.0)
_KINDS = frozenset({"job", "user"})


class _State(msgspec.Struct):
    """What `waits_too_long` reads."""

    status: object = None
    queued_at: object = None
    eta: object = None


class _Event(msgspec.Struct):
    time: str = ""
    state: _State | None = None


_decode = msgspec.json.Decoder(_Event).decode


class WaitingJobs:
    """Ends the jobs that wait for too long in what the hub reads. For one loop at a time.

    Args:
        queued_seconds: how long a job may wait.
        backend: tells the time, because other hosts have written those of the jobs.
        hub: reads the topics, and runs the tasks.
        ends: ends the jobs.
    """

    def __init__(self, queued_seconds: float, backend: Backend, hub: Hub, ends: JobEnds) -> None:
        self._queued_seconds = queued_seconds
        self._backend = backend
        # How far the server's clock is ahead of the monotonic one. Before the first reply it is
        # taken for this host's.
        self._ahead_seconds = time.time() - time.monotonic()
        self.is_measured = False
        """Whether the server has told its time."""
        self._hub = hub
        self._ends = ends
        least, most = _SWEEP_SECONDS
        self._sweep_seconds = min(max(least, queued_seconds / _SHARE), most)
        # When each topic was looked at last, on the monotonic clock, the oldest first.
        self._looked_at: dict[str, float] = {}
        # Jobs to end, each with the owner of the topic that it was found in.
        self._found: deque[tuple[str, str | None]] = deque()
        # Reads the watched topics, or ends what was found.
        self._working: asyncio.Task[None] | None = None
        # When the watched topics are read the next time, on the monotonic clock.
        self._sweep_at = 0.0

    def look(self, topic: str, snapshot: Snapshot) -> None:
        """Note the jobs in ``snapshot`` that wait for too long; `tick` ends them."""
        now = time.monotonic()
        pause = min(LOOK_AGAIN_SECONDS, self._sweep_seconds)
        if not snapshot.states or self._looked_at.get(topic, now - pause) > now - pause:
            return
        kind = split_topic(topic)[0]
        if kind not in _KINDS:
            return
        self._looked_at.pop(topic, None)
        self._looked_at[topic] = now
        if len(self._looked_at) > MAX_TOPICS:
            del self._looked_at[next(iter(self._looked_at))]
        before = self._before()
        for key, event in snapshot.states.items():
            # The members of a workflow may wait for each other, for as long as it runs.
            if kind == "job" and topic_of(key) != topic:
                continue
            if len(self._found) < MAX_FOUND and _waits_too_long(event, before):
                self._found.append((key, snapshot.owner))

    def tick(self) -> None:
        """Continue. About once a second, on the hub's loop."""
        if self._working is not None and not self._working.done():
            return
        if self._found:
            self._working = self._hub.spawn(self._end_found(), "waiting")
        elif time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + self._sweep_seconds
            self._working = self._hub.spawn(self._sweep(), "waiting")

    def _before(self) -> str:
        """Return the newest time that is too long ago."""
        return time_text(time.monotonic() + self._ahead_seconds - self._queued_seconds)

    async def _measure(self) -> None:
        """Ask the server for its time.

        Raises:
            BackendError: the backend does not answer.
        """
        self._ahead_seconds = await read_server_time(self._backend) - time.monotonic()
        self.is_measured = True

    async def _sweep(self) -> None:
        """Read the watched topics, one at a time; `look` gets what was read."""
        try:
            await self._measure()
            for topic in self._hub.watched():
                if split_topic(topic)[0] in _KINDS and not self._found:
                    async with self._hub.reads.turn(None):
                        await self._hub.read(topic)
        except BackendError:
            # The next one comes.
            pass

    async def _end_found(self) -> None:
        while self._found:
            job, owner = self._found.popleft()
            try:
                await self._end(job, owner)
            except BackendError:
                # It is found again.
                return
            except Exception:
                logger.exception("lost: job not ended job=%s", job)

    async def _end(self, job: str, owner: str | None) -> None:
        topic = topic_of(job)
        if topic is None:
            return
        # Its own topic decides, because a feed may be behind. One that has expired decides nothing.
        snapshot = await self._hub.read(topic)
        state, changed_at = stored_state(snapshot, job)
        if snapshot.deleted:
            return
        if state is not None:
            await self._measure()
            if not waits_too_long(state, changed_at, self._before()):
                return
            owner = snapshot.owner
        attempt = state.get("attempt") if state is not None else 0
        logger.warning(
            "lost: job not begun job=%s queued_seconds=%.0f: its queue was emptied, or no worker "
            "consumes it (SEMANTIK_REALTIME_QUEUED_SECONDS)",
            job,
            self._queued_seconds,
        )
        await self._ends.end(
            job,
            state,
            attempt if isinstance(attempt, int) else None,
            HeldJob(owner=None if owner is None else plain_id(owner)),
            why=f"no worker has begun it for {self._queued_seconds:g} s",
            reason="queued",
        )


def _waits_too_long(event: bytes, before: str) -> bool:
    try:
        found = _decode(event)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    if found.state is None:
        return False
    return waits_too_long(msgspec.structs.asdict(found.state), found.time, before)
