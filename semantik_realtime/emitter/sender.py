"""Calls to the backend, and when the next may be made.

While the backend fails a thread of its own tries again, about once a second:
the writer must not hang with it, for what comes meanwhile is shown and stored
at once.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from semantik_realtime.core.event import Draft, Receipt
from semantik_realtime.emitter.outcomes import EmitterStats
from semantik_realtime.errors import BackendError

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 1.0
RETRY_JITTER = 0.2
"""A wait is up to so much of it shorter or longer: many processes fail at the same moment."""

Publish = Callable[[Sequence[Draft]], Sequence[Receipt]]
Answer = Sequence[Receipt] | BackendError
"""The backend's, or why there is none. No receipts: these drafts are lost."""


class Sender:
    """Carries drafts to the backend: one call at a time.

    Used by one thread, but for `retry_now` and `has_called_for`.

    Args:
        wake: set when a try is over.
    """

    def __init__(self, publish: Publish, stats: EmitterStats, wake: threading.Event) -> None:
        self._publish = publish
        self._stats = stats
        self._wake = wake
        self._called_at = 0.0
        self._retry_seconds = 0.0
        self._retry_at = 0.0
        self._try: Future[Answer] | None = None

    @property
    def is_away(self) -> bool:
        """Whether the backend failed, and has not answered since."""
        return self._retry_seconds > 0

    def has_called_for(self, seconds: float) -> bool:
        """Whether the backend owes an answer for so long."""
        called_at = self._called_at
        return called_at > 0 and time.monotonic() - called_at > seconds

    def wait_seconds(self) -> float | None:
        """Until `carry` may be called; None while a try is not over."""
        if self._try is not None:
            return None
        return max(0.0, self._retry_at - time.monotonic())

    def retry_now(self) -> None:
        """The next try may be made now."""
        self._retry_at = 0.0

    def call(self, drafts: Sequence[Draft]) -> Answer:
        """Send ``drafts`` and wait, as long as the backend takes."""
        self._called_at = time.monotonic()
        try:
            return self._publish(drafts)
        except BackendError as error:
            self._stats.failures += 1
            return error
        except Exception:
            logger.exception("emitter: drafts lost count=%d", len(drafts))
            self._stats.failures += 1
            return []
        finally:
            self._called_at = 0.0

    def carry(self, drafts: Sequence[Draft]) -> Answer | None:
        """Send ``drafts``; None if the backend is away: then `tried` will have the answer."""
        if not self.is_away:
            return self.call(drafts)
        answer = self._try = Future[Answer]()

        def attempt() -> None:
            answer.set_result(self.call(drafts))
            self._wake.set()

        trying = threading.Thread(target=attempt, name="semantik-realtime-try", daemon=True)
        try:
            trying.start()
        except RuntimeError:
            # No more threads, or the interpreter ends.
            attempt()
        return None

    def tried(self) -> Answer | None:
        """The answer to a try, once; None if none is over."""
        if self._try is None or not self._try.done():
            return None
        answer, self._try = self._try.result(), None
        return answer

    def failed(self) -> bool:
        """What was carried was not answered; is it news that the backend is away?"""
        is_news = not self.is_away
        self._retry_seconds = min(
            max(FIRST_RETRY_SECONDS, self._retry_seconds * 2), LAST_RETRY_SECONDS
        )
        share = random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)  # noqa: S311
        self._retry_at = time.monotonic() + self._retry_seconds * share
        return is_news

    def answered(self) -> bool:
        """What was carried was answered; is it news that the backend is back?"""
        was_away = self.is_away
        self._retry_seconds = 0.0
        return was_away
