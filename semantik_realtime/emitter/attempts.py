"""Publishing drafts of new attempts: each attempt gets its number, nearly always without a call.

A task's message states which number its attempt should have. Only a redelivery
makes that wrong, and then the backend refuses the attempt's first draft. So it
does if a later attempt, in another process, was faster: then this one is outdated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from semantik_realtime.core.event import Claim, Draft, Outcome, Receipt, number_draft
from semantik_realtime.emitter.holding import Holder
from semantik_realtime.emitter.outcomes import EmitterStats
from semantik_realtime.errors import AppendUncertain, BackendUnavailable

logger = logging.getLogger(__name__)

_CLOSED = Receipt(Outcome.CLOSED)


class Writer(Holder, Protocol):
    """Where drafts go: `semantik_realtime.backends.guard.GuardedBackend`."""

    @property
    def fails_writes(self) -> bool:
        """Whether the last write failed, or one hangs."""

    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        """Append ``drafts``."""

    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        """Return the number of a new attempt; 0 if the job was deleted, -1 if it is foreign."""

    def read_start(self, topic: str, job: str) -> str:
        """Return when the newest attempt of a job began; "" if that is not known."""

    def close_writer(self) -> None:
        """Close the connections, after a fork too."""


class AttemptPublisher:
    """Publishes drafts, and settles the claims that they have. For one thread.

    All drafts of a batch go in one call, except two kinds: those of other topics
    than the job's wait for the number in a second call, and an attempt whose
    expected number is taken claims another one, and is sent again.
    """

    def __init__(self, writer: Writer, stats: EmitterStats) -> None:
        self._writer = writer
        self._stats = stats
        # Whether a claim was refused; that is logged once.
        self._has_failed_claim = False

    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        """Publish ``drafts``; return one receipt for each.

        Raises:
            BackendError: send all of them again.
        """
        if not drafts:
            return ()
        first, later = _split(drafts)
        if not later and all(draft.claim is None for draft in drafts):
            return self._writer.publish(drafts)
        receipts: dict[int, Receipt] = {}
        sent = [drafts[place] for place in first]
        for place, receipt in zip(first, self._writer.publish(sent) if sent else (), strict=True):
            draft = drafts[place]
            claim = draft.claim
            if claim is not None:
                if draft.begins and receipt.outcome is not Outcome.STALE:
                    # Closed: the job was deleted. Other refusals leave the number as it is.
                    is_deleted = receipt.outcome is Outcome.CLOSED
                    claim.number = 0 if is_deleted else claim.expected
                draft.begins = False
                if claim.number is None:
                    # Another name, because the topic may know a higher number of this one by now.
                    draft.producer = claim.token
                    later.append(place)
                    continue
            receipts[place] = receipt
        later.sort()
        for part in self._by_attempt(drafts, later):
            receipts |= self._publish_numbered(drafts, part)
        return [receipts[place] for place in range(len(drafts))]

    def _by_attempt(self, drafts: Sequence[Draft], places: Sequence[int]) -> Iterator[list[int]]:
        """Yield ``places`` in parts to be sent one after another, their drafts with their numbers.

        A claim makes the job's earlier attempt stale, so the drafts of that one go first.
        """
        part: list[int] = []
        jobs: set[str | None] = set()
        for place in places:
            draft = drafts[place]
            claim = draft.claim
            if claim is not None:
                if claim.number is None:
                    if draft.job in jobs:
                        yield part
                        part, jobs = [], set()
                    self._settle(claim)
                if claim.number:
                    number_draft(draft)
            part.append(place)
            jobs.add(draft.job)
        if part:
            yield part

    def _settle(self, claim: Claim) -> None:
        try:
            # The next attempt may run in another process, whose drafts were faster.
            if claim.started_at and (
                self._writer.read_start(claim.topic, claim.job) > claim.started_at
            ):
                claim.number = 0
                return
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

    def _publish_numbered(
        self, drafts: Sequence[Draft], places: Sequence[int]
    ) -> dict[int, Receipt]:
        # A claim that is still there belongs to a job that was deleted.
        sent = [place for place in places if drafts[place].claim is None]
        receipts = self._writer.publish([drafts[place] for place in sent]) if sent else ()
        return dict.fromkeys(places, _CLOSED) | dict(zip(sent, receipts, strict=True))


def _split(drafts: Sequence[Draft]) -> tuple[list[int], list[int]]:
    """Return the places of the drafts that can be sent now, and of those that wait for a number.

    A topic's drafts keep their order, so all that follow one that waits do too.
    """
    first: list[int] = []
    later: list[int] = []
    # The tokens of the attempts that begin in this batch.
    begun: set[str] = set()
    waiting: set[str] = set()
    for place, draft in enumerate(drafts):
        claim = draft.claim
        if claim is not None:
            if claim.number:
                number_draft(draft)
            elif claim.number == 0 or draft.topic != claim.topic:
                waiting.add(draft.topic)
            elif draft.topic not in waiting and claim.token not in begun:
                begun.add(claim.token)
                draft.begins = True
        (later if draft.topic in waiting else first).append(place)
    return first, later
