"""The lease of a process for the jobs that it runs.

A process that is killed sends no event. So it holds its jobs at the backend,
under a name of its own, for a short time that it renews while they run. A web
server that finds a lease over ends its jobs
(`semantik_realtime.web.lost_jobs`). A worker's main process holds in the same
way the workflows whose ends it would publish.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from semantik_realtime.core.event import Draft
from semantik_realtime.core.leases import LeaseTimes
from semantik_realtime.core.left_running import parts_of
from semantik_realtime.core.lifecycle import ATTEMPT_ENDS
from semantik_realtime.errors import BackendRefused

logger = logging.getLogger(__name__)

MAX_JOBS_A_CALL = 1000


class Holder(Protocol):
    """Where leases are kept: `semantik_realtime.backends.guard.GuardedBackend`."""

    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        """Add ``jobs``, remove ``ended``, and renew the lease."""


class _Held:
    """A job of this process: its topic, its record, and how many of its attempts have not ended.

    A retry may begin here before the end of the attempt before is acknowledged.
    """

    __slots__ = ("attempts", "record", "topic")

    def __init__(self, topic: str, record: bytes) -> None:
        self.topic = topic
        self.record = record
        self.attempts = 1


class HeldJobs:
    """The attempts that run in this process, and when their lease is to be renewed.

    `add` and `remove` may be called from any thread and take no lock. Everything else is
    for the thread that calls the backend. An attempt leaves when the backend
    has answered its last draft, so one whose end was dropped stays, and is
    lost when the process has ended.

    Args:
        times: how long the lease lasts, and how often it is renewed.
    """

    def __init__(self, times: LeaseTimes) -> None:
        self.holder = secrets.token_hex(6)
        """The name of this process, for one life of the process: a child has another one."""
        self._times = times
        # Attempts that have begun since the last call, as (job, topic, record); with the record
        # None, what is not held any more although no draft ends it.
        self._begun: deque[tuple[str, str, bytes | None]] = deque()
        # By id, the jobs of which an attempt has not ended.
        self._jobs: dict[str, _Held] = {}
        # Records that the backend has not got, and jobs that it is to remove.
        self._added: dict[str, bytes] = {}
        self._ended: dict[str, None] = {}
        # When the lease was renewed last, on the monotonic clock; 0: the backend holds nothing.
        self._renewed_at = 0.0
        # Whether the last call failed, so that nobody knows what the backend has.
        self._has_failed = False
        # Whether the last call is to be made again, because the backend did not answer.
        self._is_due = False
        # Whether the backend refuses to hold; logged once.
        self._is_refused = False
        # Set by `release`: what has ended is removed now instead of at the next renewal.
        self._is_released = False

    def add(self, job: str, topic: str, record: bytes) -> None:
        """An attempt of ``job`` begins, before its first draft is emitted."""
        self._begun.append((job, topic, record))

    def remove(self, job: str) -> None:
        """What was added for ``job`` is not this process's any more. Idempotent."""
        self._begun.append((job, "", None))

    def release(self) -> None:
        """Make the removal of ended jobs due now: the process ends. From any thread."""
        self._is_released = True

    def wait_seconds(self) -> float | None:
        """Return the seconds until `renew` is due; None: nothing is held."""
        return 0.0 if self._begun else self.pause_seconds()

    def pause_seconds(self) -> float | None:
        """Return the same without attempts that have just begun: their drafts wake the thread."""
        if self._is_due or (self._is_released and self._ended):
            return 0.0
        if not self._jobs and not self._ended:
            return None
        return max(0.0, self._renewed_at + self._times.renew - time.monotonic())

    def renew(self, backend: Holder, drafts: Sequence[Draft] = ()) -> None:
        """Hold what has begun, remove what has ended and renew the lease, if that is due.

        An attempt whose end is among ``drafts``, which are sent next, needs no lease.

        Raises:
            BackendUnavailable, AppendUncertain: it is due again at once.
        """
        if self.wait_seconds() != 0.0 or not (self._admit(drafts) or self.pause_seconds() == 0.0):
            return
        now = time.monotonic()
        # What the backend should hold since the last call; False from it then means that a
        # server has ended these jobs, or that the engine has lost them.
        is_expected = self._renewed_at > 0
        late = now - self._renewed_at - self._times.held if is_expected else 0.0
        if self._has_failed:
            # Nobody knows what the backend has.
            self._added = self._records()
        self._has_failed = self._is_due = True
        try:
            is_kept = self._call(backend)
            if is_expected and not is_kept and self._jobs:
                self._added = self._records()
                self._call(backend)
                if late > 0:
                    self._log_late(late)
        except BackendRefused as error:
            # The events must go on. The records are sent again with the next renewal.
            self._log_refused(error)
            self._renewed_at, self._is_due = now, False
            return
        self._has_failed = self._is_due = self._is_released = False
        self._renewed_at = now if self._jobs else 0.0

    def hold_left(self, backend: Holder, left: Mapping[str, Mapping[str, bytes]]) -> None:
        """Hold what ended processes have left running, each under the name of its process.

        When that lease is over, a server ends these attempts.

        Args:
            backend: where they are held.
            left: by the name of the process, the record of each job.

        Raises:
            BackendUnavailable, AppendUncertain: to be called again.
        """
        try:
            for holder, records in left.items():
                for part in parts_of(records, MAX_JOBS_A_CALL):
                    backend.hold(holder, part, (), self._times.held)
        except BackendRefused as error:
            self._log_refused(error)

    def _log_refused(self, error: BackendRefused) -> None:
        if not self._is_refused:
            self._is_refused = True
            logger.warning(
                "emitter: lease refused, no server notices when this process dies error=%s "
                "(logged once)",
                error,
            )

    def _call(self, backend: Holder) -> bool:
        """Send `_added` and `_ended`, in parts that one call may have, and clear them."""
        is_kept = True
        is_first = True
        while is_first or self._added or self._ended:
            added = dict(itertools.islice(self._added.items(), MAX_JOBS_A_CALL))
            ended = list(itertools.islice(self._ended, MAX_JOBS_A_CALL))
            answer = backend.hold(self.holder, added, ended, self._times.held)
            is_kept = answer if is_first else is_kept
            is_first = False
            for job in added:
                del self._added[job]
            for job in ended:
                del self._ended[job]
        return is_kept

    def _records(self) -> dict[str, bytes]:
        return {job: held.record for job, held in self._jobs.items()}

    def settle(self, drafts: Sequence[Draft]) -> None:
        """The backend has answered ``drafts``: attempts that they ended are not held any more."""
        if not self._jobs:
            return
        for draft in drafts:
            if draft.type not in ATTEMPT_ENDS or draft.job is None:
                continue
            held = self._jobs.get(draft.job)
            if held is None or held.topic != draft.topic:
                continue
            held.attempts -= 1
            if held.attempts == 0:
                del self._jobs[draft.job]
                self._added.pop(draft.job, None)
                self._ended[draft.job] = None

    def _admit(self, drafts: Sequence[Draft]) -> bool:
        """Move the attempts that have begun to `_jobs`. Return True if the backend has to know."""
        begun = [self._begun.popleft() for _ in range(len(self._begun))]
        # How many attempts of a job ends are left for, which need no lease.
        ends: dict[tuple[str | None, str], int] = {}
        for draft in drafts:
            if draft.type in ATTEMPT_ENDS:
                place = draft.job, draft.topic
                ends[place] = ends.get(place, 0) + 1
        for job, topic, record in begun:
            if record is not None and (job, topic) in ends:
                ends[job, topic] -= 1
        is_new = False
        for job, topic, record in begun:
            if record is None:
                if self._jobs.pop(job, None) is not None:
                    self._added.pop(job, None)
                    self._ended[job] = None
                continue
            if job not in self._jobs and ends.get((job, topic), -1) >= 0:
                continue
            is_new = True
            held = self._jobs.get(job)
            if held is None:
                self._jobs[job] = _Held(topic, record)
            else:
                held.attempts += 1
                held.record = record
            self._ended.pop(job, None)
            self._added[job] = record
        return is_new

    def _log_late(self, late: float) -> None:
        logger.warning(
            "emitter: lease was over late_seconds=%.1f jobs=%d: this process did not run for so "
            "long, and its jobs count as lost; what they still send is refused "
            "(SEMANTIK_REALTIME_LEASE_SECONDS)",
            late,
            len(self._jobs),
        )
