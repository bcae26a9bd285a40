"""Find the worker processes that are gone, and end the jobs that they ran.

Each web server looks; the backend gives a process to one of them. Nobody looks
while the backend is away, nor for one lease afterwards, because then no worker
could renew its lease, and a process may have left its last events to another
one that could not send them yet.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

from semantik_realtime.core.event import Outcome
from semantik_realtime.core.holding import Holding
from semantik_realtime.core.leases import HeldJob, LeaseTimes
from semantik_realtime.core.lost import attempt_to_end, known_end
from semantik_realtime.errors import BackendError, BackendRefused
from semantik_realtime.runtime import Runtime
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.job_ends import JobEnds, stored_state, topic_of
from semantik_realtime.web.outage import DegradedMode

logger = logging.getLogger(__name__)

JOBS_AT_ONCE = 8
"""Jobs that are read and ended at the same time."""
ASLEEP_SECONDS = 5.0
"""A server that did not run for so long waits as after an outage: its machine may have slept, and
with it the workers."""


class LostJobs:
    """Looks for leases that are over, from `tick`. For one loop at a time.

    Args:
        runtime: its backend is asked, and its settings say how long a lease lasts.
        hub: reads the topics, and runs the tasks.
        outage: knows whether the backend is away.
        ends: ends the jobs.
    """

    def __init__(self, runtime: Runtime, hub: Hub, outage: DegradedMode, ends: JobEnds) -> None:
        self.overdue = 0
        """How many leases of processes this server has found over."""
        self._backend = runtime.backend
        self._lease_seconds = runtime.settings.lease_seconds
        self._times = LeaseTimes.of(self._lease_seconds)
        self._hub = hub
        self._outage = outage
        self._ends = ends
        # The present look, or the last one.
        self._look: asyncio.Task[None] | None = None
        # When the next look is due, on the monotonic clock.
        self._look_at = 0.0
        # The clocks at the last tick: monotonic, and since 1970, which goes on in a sleep.
        self._ticked_at = (-math.inf, -math.inf)
        # Whether the backend refuses to tell; logged once.
        self._is_refused = False
        self._slots = asyncio.Semaphore(JOBS_AT_ONCE)

    def tick(self) -> None:
        """Look if that is due. About once a second, on the hub's loop."""
        now, before = (time.monotonic(), time.time()), self._ticked_at
        self._ticked_at = now
        has_slept = max(now[0] - before[0], now[1] - before[1]) > ASLEEP_SECONDS
        if has_slept or self._outage.since is not None or self._backend.is_away:
            self._look_at = now[0] + self._times.held
        if now[0] >= self._look_at and (self._look is None or self._look.done()):
            self._look_at = now[0] + self._times.look
            self._look = self._hub.spawn(self._find(), "lost")

    async def _find(self) -> None:
        # Anew, because the loop may be another one.
        self._slots = asyncio.Semaphore(JOBS_AT_ONCE)
        try:
            # Given to another server after that time, if this one does not finish.
            while found := await asyncio.to_thread(self._backend.overdue, self._lease_seconds):
                await asyncio.gather(*map(self._end_process, found))
        except BackendRefused as error:
            if not self._is_refused:
                self._is_refused = True
                logger.warning(
                    "lost: leases not read, no job of a dead process ends error=%s (logged once)",
                    error,
                )
        except BackendError:
            # The guard knows it now, and the degraded mode says so.
            pass

    async def _end_process(self, holding: Holding) -> None:
        before = sum(self._ends.counts.values())
        records = {job: HeldJob.decode(record) for job, record in holding.jobs.items()}
        settled = await asyncio.gather(
            *(self._end(holding.worker, job, record) for job, record in records.items())
        )
        ended = [job for job, is_settled in zip(records, settled, strict=True) if is_settled]
        if ended:
            await asyncio.to_thread(
                self._backend.hold, holding.holder, {}, ended, self._lease_seconds
            )
        # What the process ran, without the workflows that it only followed: these are given again
        # for as long as a member of them runs.
        jobs = [job for job, record in records.items() if not record.is_whole]
        left = set(jobs).difference(ended)
        self.overdue += bool(jobs or ended)
        if sum(self._ends.counts.values()) > before or left:
            logger.warning(
                "lost: worker process gone worker=%s jobs=%d not_ended=%d: it was killed, or did "
                "not run for %.0f s (SEMANTIK_REALTIME_LEASE_SECONDS)",
                holding.worker,
                len(jobs),
                len(left),
                self._times.held,
            )

    async def _end(self, worker: str, job: str, record: HeldJob) -> bool:
        """End one job of a process that is gone. Return False if that is to be tried again."""
        async with self._slots:
            try:
                if record.is_whole:
                    return await self._end_whole(record)
                return await self._end_now(worker, job, record)
            except BackendError:
                return False
            except Exception:
                # The other jobs must end all the same. This one would fail again.
                logger.exception("lost: job not ended job=%s", job)
                return True

    async def _end_whole(self, record: HeldJob) -> bool:
        """End a workflow that the process followed, if it has ended."""
        topic = None if record.workflow is None else topic_of(record.workflow)
        if topic is None:
            return True
        snapshot = await self._hub.read(topic)
        return snapshot.deleted or await self._ends.end_workflow(record, snapshot)

    async def _end_now(self, worker: str, job: str, record: HeldJob) -> bool:
        topic = topic_of(record.workflow or job)
        if topic is None:
            return True
        before: object = None
        for is_second in (False, True):
            snapshot = await self._hub.read(topic)
            if snapshot.deleted:
                return True
            state, changed_at = stored_state(snapshot, job)
            if (end := known_end(state)) is not None:
                # Its process may have died before the feeds got it.
                self._ends.repeat_for_feeds(job, end, record)
                return True
            attempt: int | None = attempt_to_end(state, worker, record.expected)
            if attempt is None or (is_second and (state, changed_at) != before):
                return True
            outcome = await self._ends.end(
                job,
                state,
                None if is_second else attempt,
                record,
                why=f"its process was killed, or did not run for {self._times.held:g} s",
                reason="lease",
            )
            if outcome is Outcome.APPENDED and record.workflow is not None:
                await self._ends.end_workflow(record, await self._hub.read(topic))
            if outcome is not Outcome.STALE:
                return outcome is not Outcome.WAITING
            # A newer attempt has its number. If no event of it follows, its process died before
            # the first one; then the end is that of the newest attempt.
            before = (state, changed_at)
            await asyncio.sleep(self._times.look)
        return True
