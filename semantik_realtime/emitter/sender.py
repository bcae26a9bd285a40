"""Calls to the backend, one at a time, and the schedule of their retries.

After a failure a thread of its own makes the next calls, about once a second:
the emitter's thread must not hang with them, because it shows and stores at
once what is emitted in the meantime.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from semantik_realtime.backoff import Backoff
from semantik_realtime.core.event import Claim, Draft, Outcome, Receipt, number_draft
from semantik_realtime.emitter.holding import HeldJobs, Holder
from semantik_realtime.emitter.outcomes import EmitterStats
from semantik_realtime.errors import AppendUncertain, BackendError, BackendUnavailable
from semantik_realtime.native_threads import Event, make_thread

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 1.0
RETRY_JITTER = 0.2

Reply = Sequence[Receipt] | BackendError
"""The backend's receipts, or why there are none. No receipt for a draft: that draft is lost."""


class Writer(Holder, Protocol):
    """Where drafts go: `semantik_realtime.backends.guard.GuardedBackend`."""

    @property
    def fails_writes(self) -> bool:
        """Whether the last write failed, or one hangs."""

    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        """Append ``drafts``."""

    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        """Return the number of a new attempt; 0 if the job was deleted, -1 if it is foreign."""

    def close_writer(self) -> None:
        """Close the connections, after a fork too."""


class Sender:
    """Sends drafts to the backend: one call at a time.

    For one thread, except `retry_now` and `has_called_for`.

    Args:
        wake: set when a retry has its reply.
        held: the attempts of this process, which the backend must know before their drafts.
    """

    def __init__(self, writer: Writer, stats: EmitterStats, wake: Event, held: HeldJobs) -> None:
        self._writer = writer
        self._held = held
        self._stats = stats
        self._wake = wake
        # When the running call began; 0 while none runs.
        self._called_at = 0.0
        self._backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, jitter=RETRY_JITTER)
        # When the next call may be made; in the past while the last one succeeded.
        self._retry_at = 0.0
        # Whether a claim was refused; that is logged once.
        self._has_failed_claim = False
        # Whether a retry runs, in a thread of its own, or its reply was not returned yet.
        self._is_in_retry = False
        # That reply, set by that thread; None before it has one.
        self._reply: Reply | None = None
        self.retried: Sequence[Draft] = ()
        """The drafts of the last retry; none if it only renewed the lease."""

    @property
    def is_retrying(self) -> bool:
        """Whether the last call failed, so that its drafts are to be sent again."""
        return self._backoff.failures > 0

    def has_called_for(self, seconds: float) -> bool:
        """Return True if the running call has lasted for longer than ``seconds``."""
        called_at = self._called_at
        return called_at > 0 and time.monotonic() - called_at > seconds

    def wait_seconds(self) -> float | None:
        """Return the seconds until `send` may be called; None while a retry runs."""
        if self._is_in_retry:
            return None
        return max(0.0, self._retry_at - time.monotonic())

    def retry_now(self) -> None:
        """Allow the next call now. From any thread."""
        self._retry_at = 0.0

    def call(self, drafts: Sequence[Draft]) -> Reply:
        """Send ``drafts`` and wait for the reply, for as long as the backend takes.

        An attempt gets its number here, before its first draft is sent.
        """
        self._called_at = time.monotonic()
        try:
            receipts: list[Receipt] = []
            self._held.renew(self._writer)
            for attempt in self._by_attempt(drafts):
                receipts += self._publish(attempt)
            self._held.settle(drafts)
            return receipts
        except BackendError as error:
            self._stats.failures += 1
            return error
        except Exception:
            logger.exception("emitter: drafts lost count=%d", len(drafts))
            self._stats.failures += 1
            return []
        finally:
            self._called_at = 0.0

    def _by_attempt(self, drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
        """Yield ``drafts`` with their numbers, in parts to be sent one after another.

        A claim makes the job's earlier attempt stale, so the drafts of that one go first.
        """
        part: list[Draft] = []
        jobs: set[str | None] = set()
        for draft in drafts:
            claim = draft.claim
            if claim is not None:
                if claim.number is None:
                    if draft.job in jobs:
                        yield part
                        part, jobs = [], set()
                    self._settle(claim)
                if claim.number:
                    number_draft(draft)
            part.append(draft)
            jobs.add(draft.job)
        if part:
            yield part

    def _settle(self, claim: Claim) -> None:
        try:
            number = self._writer.claim(claim.topic, claim.job, claim.token, claim.owner)
            # The backend may not know of an attempt whose events were lost with its process. And
            # of a job whose id another owner uses, only the feeds get the events.
            claim.number = max(number, claim.expected) if number else 0
        except (BackendUnavailable, AppendUncertain):
            raise
        except Exception as error:
            # Also a right that is missing: the attempts are then counted by the messages.
            self._stats.failures += 1
            claim.number = claim.expected
            if not self._has_failed_claim:
                self._has_failed_claim = True
                logger.warning(
                    "emitter: attempt not claimed job=%s error=%s (logged once)", claim.job, error
                )

    def _publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        # A claim that is still there belongs to a job that was deleted.
        sent = [draft for draft in drafts if draft.claim is None]
        if len(sent) == len(drafts):
            return self._writer.publish(drafts)
        receipts = iter(self._writer.publish(sent) if sent else ())
        return [
            next(receipts) if draft.claim is None else Receipt(Outcome.CLOSED) for draft in drafts
        ]

    def send(self, drafts: Sequence[Draft]) -> Reply | None:
        """Send ``drafts``. A retry returns None: `retry_reply` will return its reply."""
        if not self.is_retrying:
            return self.call(drafts)
        self._is_in_retry, self._reply = True, None
        self.retried = drafts

        def retry() -> None:
            self._reply = self.call(drafts)
            self._wake.set()

        try:
            make_thread(retry, "semantik-realtime-retry").start()
        except RuntimeError:
            # No more threads, or the interpreter ends.
            retry()
        return None

    def retry_reply(self) -> Reply | None:
        """Return the reply of a retry, once; None if there is none yet."""
        if self._reply is None:
            return None
        reply, self._reply, self._is_in_retry = self._reply, None, False
        return reply

    def failed(self) -> bool:
        """Schedule a retry. Return True if the call before had succeeded."""
        is_first = not self.is_retrying
        self._retry_at = time.monotonic() + self._backoff.next_seconds()
        return is_first

    def succeeded(self) -> bool:
        """Forget the schedule. Return True if it was a retry that succeeded."""
        was_retrying = self.is_retrying
        self._backoff.reset()
        return was_retrying
