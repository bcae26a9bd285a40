"""Appending to one topic: the drafts, claims and deletions of a process, and checkpoints."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Outcome, Receipt
from semantik_realtime.core.retention import own_job
from semantik_realtime.errors import AppendUncertain, BackendError

from semantik_realtime_nats.conflicts import retry_conflicts
from semantik_realtime_nats.errors import NoReply, SequenceConflict, explain
from semantik_realtime_nats.ledger import Gap, Ledger
from semantik_realtime_nats.log import TopicLog, catch_up, encode_checkpoint, read_messages
from semantik_realtime_nats.plan import Limits, Plan, Stale
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects

logger = logging.getLogger(__name__)

HEADER_BYTES = 8192
"""Room in a message for everything but the events."""
CROWDED = 0.75
"""Part of a message that a checkpoint may fill before the topic gets no more keys."""
CLOCK_SECONDS = 0.1
"""How far two processes' estimates of the server's clock may differ. A topic that has expired for
a reader must have expired for a writer, too; otherwise it would append events that no reader
gets."""


class TopicWriter:
    """Appends to one topic. Lives on the writer's loop; calls to one topic wait for each other.

    It keeps the topic's ledger, so an append is one round trip. If another process appended in
    between, the condition of the append fails; then the ledger is caught up and the append
    planned again.
    """

    def __init__(self, settings: Settings, subjects: Subjects, topic: str) -> None:
        self._settings = settings
        self._subjects = subjects
        self._topic = topic
        self._lock = asyncio.Lock()
        """Held during each call."""
        self._ledger: Ledger | None = None
        """As of the last append that we know of; None if it has to be read."""
        self._max_keys = settings.max_keys
        """Less than configured while a checkpoint is nearly as large as a message can be."""
        self._crowding_logged = False
        """True once the log has said that the topic gets no more keys."""

    @property
    def is_busy(self) -> bool:
        """True during a call."""
        return self._lock.locked()

    def forget(self) -> None:
        """Read the ledger again before the next append."""
        self._ledger = None

    async def append(self, stream: Stream, drafts: list[Draft]) -> list[Receipt]:
        """Append drafts in order, and return a receipt for each.

        Raises:
            AppendUncertain: some may have been appended, others not.
            BackendError, TimeoutError: as of the first read; nothing was appended.
        """
        receipts: list[Receipt] = []
        # The job and attempt of the drafts that begin an attempt and are stale.
        stale: set[tuple[str | None, int | None]] = set()
        async with self._lock:
            for part in split_drafts(drafts, stream.connection.max_payload_bytes - HEADER_BYTES):
                rest = part
                while rest:
                    try:
                        appended = await self._append_message(stream, rest, stale)
                    except Exception as error:
                        if not receipts:
                            raise
                        raise AppendUncertain(f"only in part: {explain(error)}") from error
                    receipts += appended
                    stale.update(
                        (draft.job, draft.attempt)
                        for draft, receipt in zip(rest, appended, strict=False)
                        if draft.begins and receipt.outcome is Outcome.STALE
                    )
                    rest = rest[len(appended) :]
                    await self._write_checkpoint(stream)
        return receipts

    async def claim(self, stream: Stream, job: str, token: str, owner: str | None) -> int:
        """See `semantik_realtime.hookspecs.BackendSpec.claim`."""
        attempt = 0

        def plan(ledger: Ledger) -> Plan | None:
            nonlocal attempt
            attempt, planned = ledger.plan_claim(job, token, owner, self._limits(stream))
            return planned

        async with self._lock:
            await self._write(stream, plan)
        return attempt

    async def delete(self, stream: Stream) -> bool:
        """See `semantik_realtime.hookspecs.BackendSpec.delete`."""
        existed = False

        def plan(ledger: Ledger) -> Plan:
            nonlocal existed
            existed = not ledger.deleted and ledger.offset > 0
            return ledger.plan_delete(self._limits(stream))

        async with self._lock:
            await self._write(stream, plan)
        return existed

    async def _append_message(
        self, stream: Stream, drafts: list[Draft], stale: Stale
    ) -> list[Receipt]:
        """Append the first drafts, as many as one message has room for; return their receipts."""
        receipts: list[Receipt] = []

        def plan(ledger: Ledger) -> Plan:
            nonlocal receipts
            planned = ledger.plan_append(drafts, self._limits(stream), stale)
            receipts = planned.receipts
            return planned

        await self._write(stream, plan)
        if any(receipt.outcome is Outcome.DUPLICATE for receipt in receipts):
            try:
                return await self._with_first_positions(stream, drafts, receipts)
            except BackendError as error:
                raise AppendUncertain(f"positions of duplicates not read: {error}") from error
        return receipts

    async def _write(self, stream: Stream, plan: Callable[[Ledger], Plan | None]) -> None:
        """Append what ``plan`` returns for the newest ledger, which it changes.

        On a conflict it is called again with a newer ledger.
        """
        try:
            await self._try_write(stream, plan)
        except SequenceConflict:
            # Only now with tenacity, which costs a tenth of an append even without a conflict.
            await self._catch_up_and_write(stream, plan)

    @retry_conflicts
    async def _catch_up_and_write(
        self, stream: Stream, plan: Callable[[Ledger], Plan | None]
    ) -> None:
        await self._catch_up(stream)
        await self._try_write(stream, plan)

    async def _try_write(self, stream: Stream, plan: Callable[[Ledger], Plan | None]) -> None:
        ledger = (await self._current_ledger(stream)).copy()
        planned = plan(ledger)
        if planned is None or planned.payload is None:
            return
        expected_seq = ledger.expected_seq
        # A deletion, and the first message of a new epoch, purge the older messages.
        replaces_log = expected_seq > 0 and (planned.header.deleted or ledger.seq == 0)
        try:
            seq = await stream.publish(
                self._subjects.log(self._topic),
                planned.payload,
                expected_seq,
                rollup=replaces_log,
            )
        except NoReply as error:
            raise AppendUncertain(str(error)) from error
        ledger.commit(planned.header, seq, stream.estimate_now())
        self._ledger = None if planned.header.deleted else ledger
        if replaces_log:
            # Checkpoint and states of the older epoch. Readers ignore them, so this may fail.
            try:
                await stream.purge(self._subjects.all_of(self._topic), seq)
            except BackendError as error:
                logger.info("writer: not purged topic=%s error=%s", self._topic, error)

    async def _current_ledger(self, stream: Stream) -> Ledger:
        """Return the ledger; of a new epoch if the topic is unknown or has expired."""
        if self._ledger is None:
            log = await TopicLog.read(stream, self._subjects, self._topic)
            self._ledger = log.ledger if log else Ledger.begin(0)
        if await stream.is_past(self._ledger.alive_until - CLOCK_SECONDS):
            self._ledger = Ledger.begin(self._ledger.expected_seq)
        return self._ledger

    async def _catch_up(self, stream: Stream) -> None:
        """Apply what other processes appended; if that fails, forget the ledger."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None and ledger.seq > 0:
            with contextlib.suppress(Gap):
                if await catch_up(stream, self._subjects, self._topic, ledger):
                    self._ledger = ledger

    async def _with_first_positions(
        self, stream: Stream, drafts: list[Draft], receipts: list[Receipt]
    ) -> list[Receipt]:
        """Return the receipts; those of duplicates with the cursor of the first append.

        Without one where the log is trimmed.
        """
        positions: dict[tuple[str, int], Cursor] = {}
        for message in await read_messages(stream, self._subjects, self._topic, 1):
            epoch = message.header.epoch
            for event, number in zip(message.events(), message.numbers(), strict=True):
                positions[number] = Cursor(epoch, event.offset, event.chain)
        return [
            Receipt(Outcome.DUPLICATE, positions.get((draft.producer, draft.number)))
            if receipt.outcome is Outcome.DUPLICATE
            else receipt
            for draft, receipt in zip(drafts, receipts, strict=False)
        ]

    async def _write_checkpoint(self, stream: Stream) -> None:
        """Store the changed states, then the checkpoint, then trim the log, if it is time.

        Every publish is on condition that the log's last message is the ledger's. If one fails,
        nothing is lost: readers fold more of the log.
        """
        ledger = self._ledger
        if ledger is None or not ledger.needs_checkpoint():
            return
        log, subjects = self._subjects.log(self._topic), self._subjects
        oldest_page = ledger.pages[0]
        checkpoint = encode_checkpoint(ledger, self._settings.retention_events)
        if not self._fits(stream, ledger, len(checkpoint)):
            return

        async def store(subject: str, data: bytes) -> None:
            await stream.publish(subject, data, ledger.seq, expected_on=log, rollup=True)

        try:
            # Wait for all: the next append must not run while one of them is on its way.
            results = await asyncio.gather(
                *(
                    store(subjects.state(self._topic, key), event)
                    for key, event in ledger.changed.items()
                ),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            await store(subjects.checkpoint(self._topic), checkpoint)
            ledger.mark_checkpoint()
            if ledger.pages[0] != oldest_page:
                await stream.purge(log, ledger.pages[0][1])
        except SequenceConflict:
            # Another process has appended, and writes a checkpoint when it is due.
            pass
        except BackendError as error:
            logger.info("writer: no checkpoint topic=%s error=%s", self._topic, error)

    def _fits(self, stream: Stream, ledger: Ledger, checkpoint_bytes: int) -> bool:
        """Return True if a checkpoint fits in a message.

        If it nearly does not, the topic gets no more keys than it has.
        """
        max_payload_bytes = stream.connection.max_payload_bytes
        room = max_payload_bytes - HEADER_BYTES
        self._max_keys = self._settings.max_keys
        if checkpoint_bytes > CROWDED * room:
            self._max_keys = max(1, min(self._max_keys, len(ledger.keys)))
            if not self._crowding_logged:
                self._crowding_logged = True
                logger.warning(
                    "writer: no more keys topic=%s keys=%d: its checkpoint has %d bytes and the "
                    "server's max_payload is %d; raise max_payload, or lower "
                    "SEMANTIK_REALTIME_MAX_KEYS",
                    self._topic,
                    len(ledger.keys),
                    checkpoint_bytes,
                    max_payload_bytes,
                )
        return checkpoint_bytes <= room

    def _limits(self, stream: Stream) -> Limits:
        settings = self._settings
        return Limits(
            settings.retention_events,
            settings.retention,
            self._max_keys,
            min(settings.max_event_bytes, stream.connection.max_payload_bytes - 2 * HEADER_BYTES),
            own_job(self._topic),
        )


def split_drafts(drafts: list[Draft], max_bytes: int) -> list[list[Draft]]:
    """Split drafts into parts that fit in a message each, as far as one draft does."""
    parts: list[list[Draft]] = [[]]
    size = 0
    for draft in drafts:
        # Its body, and its facts in the header, where a character may become four bytes.
        cost = len(draft.body) + 4 * (len(draft.key) + len(draft.job or "")) + 128
        if size + cost > max_bytes and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(draft)
        size += cost
    return parts
