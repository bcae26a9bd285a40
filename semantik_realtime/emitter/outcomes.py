"""What became of the drafts: counted, and told to whoever waits for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec

from semantik_realtime.core.event import Draft, Outcome, Receipt
from semantik_realtime.errors import BackendUnavailable

logger = logging.getLogger(__name__)


class EmitterStats(msgspec.Struct):
    """Counts since the process began."""

    appended: int = 0
    duplicate: int = 0
    stale: int = 0
    """Refused: of an outdated attempt."""
    closed: int = 0
    """Refused: of a job that has ended or was deleted."""
    rejected: int = 0
    """Too big, or too many keys."""
    dropped: int = 0
    """Left out because too much waited; superseded drafts included."""
    failures: int = 0
    """Calls to the backend that failed; they are made again."""


class Outcomes:
    """Counts outcomes in ``stats``, and keeps the promises of `promise`. For any thread."""

    def __init__(self, stats: EmitterStats) -> None:
        self._stats = stats
        self._answers: dict[int, Future[Receipt]] = {}

    def promise(self, draft: Draft) -> Future[Receipt]:
        """What will have the backend's answer to ``draft``."""
        answer: Future[Receipt] = Future()
        self._answers[id(draft)] = answer
        return answer

    def settle(self, drafts: Sequence[Draft], receipts: Sequence[Receipt]) -> None:
        """Take in the backend's answer; drafts for which it has no receipt are lost."""
        for draft, receipt in zip(drafts, receipts, strict=False):
            self._count(draft, receipt)
            self._answer(draft, receipt)
        for draft in drafts[len(receipts) :]:
            self._answer(draft, None)

    def drop(self, draft: Draft) -> None:
        """Take in that there was no room for ``draft``."""
        self._stats.dropped += 1
        self._answer(draft, None)

    def _count(self, draft: Draft, receipt: Receipt) -> None:
        match receipt.outcome:
            case Outcome.APPENDED:
                self._stats.appended += 1
            case Outcome.DUPLICATE:
                self._stats.duplicate += 1
            case Outcome.STALE:
                self._stats.stale += 1
            case Outcome.CLOSED:
                self._stats.closed += 1
            case _:
                self._stats.rejected += 1
                logger.warning(
                    "emitter: draft rejected topic=%s type=%s outcome=%s",
                    draft.topic,
                    draft.type,
                    receipt.outcome.value,
                )

    def _answer(self, draft: Draft, receipt: Receipt | None) -> None:
        if not self._answers:
            return
        future = self._answers.pop(id(draft), None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if receipt is None:
            future.set_exception(BackendUnavailable("dropped: too much waits for the backend"))
        else:
            future.set_result(receipt)
