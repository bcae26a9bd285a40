"""The outcomes of drafts: counted, and delivered to the futures that wait for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import msgspec

from semantik_realtime.core.event import Draft, Outcome, Receipt
from semantik_realtime.errors import BackendUnavailable

logger = logging.getLogger(__name__)


MAX_REFUSALS = 1000
"""Refusals that are remembered, so that each is logged once: of a topic, for a reason."""


class EmitterStats(msgspec.Struct):
    """Counts since the process began."""

    appended: int = 0
    unpublished: int = 0
    """Of those, the ones that were not sent to the watchers, who get them when they look."""
    duplicate: int = 0
    stale: int = 0
    """Refused: they belong to an outdated attempt."""
    closed: int = 0
    """Refused: their job has ended or was deleted."""
    foreign_owner: int = 0
    """Refused: their topic belongs to another owner."""
    rejected: int = 0
    """Too big, or too many keys."""
    refused: int = 0
    """Refused by the backend's server for reasons of their topic."""
    dropped: int = 0
    """Dropped because too many waited; superseded drafts included."""
    unreadable: int = 0
    """Lines of the spool files of ended processes that were torn or damaged."""
    failures: int = 0
    """Calls to the backend that failed and are made again, and errors of the emitter's thread."""


class Outcomes:
    """Counts outcomes in ``stats`` and resolves the futures of `promise`. For any thread.

    ``refused`` is called with each draft that the server refuses for reasons of its topic.
    """

    def __init__(
        self, stats: EmitterStats, refused: Callable[[Draft], object] = lambda draft: None
    ) -> None:
        self._stats = stats
        self._refused = refused
        # Futures that wait, by the id of their draft; an entry leaves with its outcome.
        self._futures: dict[int, Future[Receipt]] = {}
        # What topics have refused, as logged. Cleared when it is too much.
        self._refusals: set[tuple[str, Outcome]] = set()

    def promise(self, draft: Draft) -> Future[Receipt]:
        """Return the future that gets the receipt of ``draft``."""
        future: Future[Receipt] = Future()
        self._futures[id(draft)] = future
        return future

    def settle(self, drafts: Sequence[Draft], receipts: Sequence[Receipt]) -> None:
        """Record the backend's receipts; drafts without a receipt are lost."""
        for draft, receipt in zip(drafts, receipts, strict=False):
            self._count(draft, receipt)
            self._resolve(draft, receipt)
        for draft in drafts[len(receipts) :]:
            self._resolve(draft, None)

    def drop(self, draft: Draft) -> None:
        """Record that ``draft`` was dropped for lack of room."""
        self._stats.dropped += 1
        self._resolve(draft, None)

    def _count(self, draft: Draft, receipt: Receipt) -> None:
        match receipt.outcome:
            case Outcome.APPENDED:
                self._stats.appended += 1
                self._stats.unpublished += not receipt.published
            case Outcome.DUPLICATE:
                self._stats.duplicate += 1
            case Outcome.STALE:
                self._stats.stale += 1
            case Outcome.CLOSED:
                self._stats.closed += 1
            case Outcome.FOREIGN_OWNER:
                self._stats.foreign_owner += 1
                if self._is_first(draft, receipt):
                    logger.warning(
                        "emitter: owner refused topic=%s type=%s owner=%r: the topic belongs to "
                        "another user (header realtime_owner, or owner= of publish and submit; "
                        "logged once for each topic)",
                        draft.topic,
                        draft.type,
                        draft.owner,
                    )
            case Outcome.REFUSED:
                self._stats.refused += 1
                self._refused(draft)
                if self._is_first(draft, receipt):
                    logger.error(
                        "emitter: topic refused, its events are dropped topic=%s type=%s error=%s "
                        "(logged once for each topic)",
                        draft.topic,
                        draft.type,
                        receipt.reason,
                    )
            case _:
                self._stats.rejected += 1
                if self._is_first(draft, receipt):
                    logger.warning(
                        "emitter: draft rejected topic=%s type=%s outcome=%s (logged once for "
                        "each topic and outcome)",
                        draft.topic,
                        draft.type,
                        receipt.outcome.value,
                    )

    def _is_first(self, draft: Draft, receipt: Receipt) -> bool:
        """Return True if the topic has not refused a draft for this reason, as far as is known."""
        refusal = draft.topic, receipt.outcome
        if refusal in self._refusals:
            return False
        if len(self._refusals) >= MAX_REFUSALS:
            self._refusals.clear()
        self._refusals.add(refusal)
        return True

    def _resolve(self, draft: Draft, receipt: Receipt | None) -> None:
        if not self._futures:
            return
        future = self._futures.pop(id(draft), None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if receipt is None:
            future.set_exception(BackendUnavailable("dropped: too much waits for the backend"))
        else:
            future.set_result(receipt)
