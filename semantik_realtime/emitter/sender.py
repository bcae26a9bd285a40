"""Calls to the backend, one at a time, and the schedule of their retries.

After a failure a thread of its own makes the next calls, about once a second:
the emitter's thread must not hang with them, because it shows and stores at
once what is emitted in the meantime.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from semantik_realtime.backoff import Backoff
from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.emitter.attempts import AttemptPublisher, Writer
from semantik_realtime.emitter.holding import HeldJobs
from semantik_realtime.emitter.outcomes import EmitterStats
from semantik_realtime.errors import BackendError
from semantik_realtime.native_threads import Event, make_thread

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 1.0
RETRY_JITTER = 0.2

Reply = Sequence[Receipt] | BackendError
"""The backend's receipts, or why there are none. No receipt for a draft: that draft is lost."""


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
        self._attempts = AttemptPublisher(writer, stats)
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

    def call(
        self, drafts: Sequence[Draft], left: Mapping[str, Mapping[str, bytes]] | None = None
    ) -> Reply:
        """Send ``drafts`` and wait for the reply, for as long as the backend takes.

        An attempt gets its number here. Of drafts that another process has left, ``left`` has the
        attempts that nobody will end (`HeldJobs.hold_left`).
        """
        self._called_at = time.monotonic()
        try:
            self._held.hold_left(self._writer, left or {})
            self._held.renew(self._writer, drafts)
            receipts = self._attempts.publish(drafts)
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
