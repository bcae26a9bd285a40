"""Whole topics, read and stored for a migration to or from NATS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

from msgspec import UNSET, UnsetType
from semantik_realtime.config import Settings
from semantik_realtime.core.copying import (
    DELETED,
    UNKNOWN,
    CopiedEvent,
    CopiedJob,
    CopiedProducer,
    Mark,
    TopicCopy,
    find_takeover,
    runs_of,
)
from semantik_realtime.core.event import StateChange, position_before
from semantik_realtime.core.retention import own_job
from semantik_realtime.core.topic import check_topic
from semantik_realtime.errors import BackendRefused, TopicError
from semantik_realtime.transfer import CopiedHolder, TopicHead
from semantik_realtime.urls import mask_urls

from semantik_realtime_nats.errors import SequenceConflict, explain
from semantik_realtime_nats.held import fold
from semantik_realtime_nats.holders import Holders
from semantik_realtime_nats.ledger import Gap, JobAttempt, Ledger
from semantik_realtime_nats.log import (
    TopicLog,
    decode_message,
    encode_checkpoint,
    offset_of,
    read_messages,
)
from semantik_realtime_nats.marks import read_mark, with_mark
from semantik_realtime_nats.records import EventRun, LogHeader
from semantik_realtime_nats.settings import SCHEMES, load_nats_settings, plan_connect
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects, topic_of

PART_TOPICS = 500
HEADER_BYTES = 16 * 1024
"""Room in a message for everything but the events: more than `MESSAGE_EVENTS` runs take."""
MESSAGE_EVENTS = 64
"""Most events of one message: as many as between two entries of the index."""
STORES_AT_ONCE = 32
READ_TRIES = 5
SETTLE_SECONDS = 0.2
"""After so long without a new message, those that were on their way are stored."""


class NatsTransfer:
    """See `semantik_realtime.transfer.Transfer`.

    Raises:
        ConfigError: a setting is wrong.
    """

    schemes = SCHEMES

    def __init__(self, settings: Settings) -> None:
        nats_settings = load_nats_settings()
        self._settings = settings
        self._options = plan_connect(settings.url, nats_settings)
        self._subjects = Subjects(settings, nats_settings)
        self._holders = Holders(self._subjects)
        # On the last connection; None before the first.
        self._stream: Stream | None = None

    @property
    def address(self) -> str:
        return mask_urls(",".join(self._options.urls))

    async def open(self) -> None:
        await self._connected()

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.connection.close()

    async def topics(self) -> AsyncIterator[Sequence[str]]:
        offset = 0
        while True:
            async with self._translated() as stream:
                logs = self._subjects.log("*")
                info = await stream.read_info(subjects_filter=logs, offset=offset)
            found = list(info["state"].get("subjects") or ())
            names = [topic_of(subject) for subject in found]
            topics = [name for name in names if _is_topic(name)]
            for start in range(0, len(topics), PART_TOPICS):
                yield topics[start : start + PART_TOPICS]
            offset += len(found)
            if not found or offset >= info.get("total", 0):
                return

    async def heads(self, topics: Sequence[str]) -> dict[str, TopicHead]:
        heads = {}
        by_log = {self._subjects.log(topic): topic for topic in topics}
        async with self._translated() as stream:
            found = await stream.read_last(list(by_log))
            for log, stored in found.items():
                last = decode_message(by_log[log], stored)
                if last is None:
                    # Another program has published it; the log goes on before it.
                    heads[by_log[log]] = TopicHead(f"foreign {stored.seq}", UNKNOWN)
                elif not await stream.is_past(last.expires_at):
                    place = DELETED if last.header.deleted else str(last.cursor)
                    heads[by_log[log]] = TopicHead(str(last.seq), place)
        return heads

    async def read(self, topic: str, after: int) -> TopicCopy | None:
        async with self._translated() as stream:
            for _ in range(READ_TRIES):
                # On a gap the log has changed too much since it was read.
                with contextlib.suppress(Gap):
                    return await self._read(stream, topic, after)
        return None

    async def put(
        self, copy: TopicCopy, place: str, *, whole: bool, run: str | None = None
    ) -> bool:
        async with self._translated() as stream:
            log = await TopicLog.read(stream, self._subjects, copy.topic)
            if await _place_of(stream, log) != place:
                return False
            now = await stream.now()
            # Last, for no message can be stored on condition of a mark.
            if run is not None and find_takeover(await self._read_mark(stream), run):
                return False
            try:
                await self._put(stream, copy, log, now, whole=whole)
            except SequenceConflict:
                return False
            return True

    async def holders(self) -> AsyncIterator[CopiedHolder]:
        async with self._translated() as stream:
            info = await stream.read_info(subjects_filter=self._subjects.held("*"))
            now = await stream.now()
            for subject in info["state"].get("subjects") or ():
                held = fold(one.data for one in await stream.read_from(subject, 1))
                for name, one in held.holders.items():
                    yield CopiedHolder(name, one.ends_at - now, one.jobs)

    async def put_holder(self, holder: CopiedHolder) -> None:
        async with self._translated() as stream:
            # Not by the writer, which a mark stops.
            await self._holders.hold(stream, holder.holder, holder.jobs, (), holder.seconds)

    async def read_mark(self) -> Mark | None:
        async with self._translated() as stream:
            return await self._read_mark(stream)

    @staticmethod
    async def _read_mark(stream: Stream) -> Mark | None:
        return read_mark((await stream.read_info())["config"])

    async def set_mark(
        self,
        mark: Mark | None,
        *,
        is_closing_needed: bool = True,
        instead_of: Mark | UnsetType | None = UNSET,
    ) -> bool:
        async with self._translated() as stream:
            found = (await stream.read_info())["config"]
            if instead_of is not UNSET and read_mark(found) != instead_of:
                return False
            config = with_mark(found, mark)
            await stream.request_api(f"STREAM.UPDATE.{self._subjects.stream}", config)
            if mark is not None and mark.closes and config.get("num_replicas", 1) > 1:
                await self._settle(stream)
            return True

    @staticmethod
    async def _settle(stream: Stream) -> None:
        """Wait until what several servers had agreed on before is in the stream."""
        last_seq = -1
        while (newest := (await stream.read_info())["state"]["last_seq"]) != last_seq:
            last_seq = newest
            await asyncio.sleep(SETTLE_SECONDS)

    async def _connected(self) -> Stream:
        if self._stream is None or self._stream.connection.is_closed:
            self._holders.forget()
            self._stream = await Stream.open(
                self._options, self._subjects, self._settings.timeout_seconds
            )
        return self._stream

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[Stream]:
        try:
            yield await self._connected()
        except Exception as error:
            raise explain(error) from error

    async def _read(self, stream: Stream, topic: str, after: int) -> TopicCopy | None:
        log = await TopicLog.read(stream, self._subjects, topic)
        if log is None or await stream.is_past(log.ledger.alive_until):
            return None
        ledger, now = log.ledger, await stream.now()
        if ledger.deleted:
            keep = ledger.alive_until - now
            return TopicCopy(topic, ledger.cursor, deleted=True, keep_seconds=keep)
        if ledger.seq == 0:
            # No message is left that a writer has made.
            return None
        # First, because it may bring the ledger to a later position.
        states = await log.read_states()
        first = max(after, ledger.first_offset(self._settings.retention_events) - 1)
        begin = ledger.find_seq(first) or 1
        events = []
        for message in await read_messages(stream, self._subjects, topic, begin):
            if message.seq > ledger.seq or message.header.epoch != ledger.epoch:
                continue
            for event, draft in zip(message.events(), message.numbers(), strict=True):
                if event.offset > first:
                    events.append(CopiedEvent(event, *draft))
        if events and events[-1].event.offset != ledger.offset:
            raise Gap("the end of the log is gone")
        own = own_job(topic) or ""
        is_open = own in ledger.keys and not ledger.jobs.get(own, JobAttempt()).ended_at
        return TopicCopy(
            topic,
            ledger.cursor,
            ledger.owner,
            keep_seconds=ledger.alive_until - now,
            is_open=is_open,
            due_at=ledger.due_at if is_open else None,
            events=events,
            states=states,
            jobs={
                job: CopiedJob(
                    one.attempt, one.ended_at, one.ended_at or ledger.keys.get(job, 0), one.token
                )
                for job, one in ledger.jobs.items()
            },
            producers={name: CopiedProducer(last, 0.0) for name, last in ledger.numbers.items()},
        )

    async def _put(
        self, stream: Stream, copy: TopicCopy, log: TopicLog | None, now: float, *, whole: bool
    ) -> None:
        """Store the log, then the states, then the checkpoint.

        Until the checkpoint is stored, readers would not see all of the states and of the fence;
        if it is not, the topic is put again as a whole.

        Raises:
            SequenceConflict: somebody else has written to the topic.
        """
        ledger = Ledger(_epoch_of(copy), deleted=copy.deleted)
        last_seq = 0
        if log is not None and not whole:
            last_seq = log.ledger.expected_seq
            ledger.seq, ledger.pages = log.ledger.seq, log.ledger.pages.copy()
        elif log is not None:
            # Only what was read: a message that came since is a conflict.
            end_seq = log.ledger.expected_seq
            await stream.purge(self._subjects.all_of(copy.topic), end_seq + 1)
        subject = self._subjects.log(copy.topic)
        for header, bodies in self._messages(stream, copy, ledger.seq, now):
            if last_seq == 0 and not copy.deleted:
                await self._put_beginning(stream, copy.topic, header)
            seq = await stream.publish(subject, header.encode(bodies), last_seq)
            header.prev_seq = last_seq = seq
            ledger.commit(header, seq, now)
        if not copy.deleted:
            await self._put_states(stream, copy, ledger)

    async def _put_beginning(self, stream: Stream, topic: str, header: LogHeader) -> None:
        """Store a checkpoint of what was before the first message of a log, which may be trimmed.

        Without it no reader could fold the messages while there are only some of them.
        """
        before = Ledger(header.epoch, offset=header.offset, chain=header.chain)
        checkpoint = encode_checkpoint(before, self._settings.retention_events)
        log = self._subjects.log(topic)
        subject = self._subjects.checkpoint(topic)
        await stream.publish(subject, checkpoint, 0, expected_on=log, rollup=True)

    def _messages(
        self, stream: Stream, copy: TopicCopy, prev_seq: int, now: float
    ) -> Iterator[tuple[LogHeader, list[bytes]]]:
        """Yield the messages of a copy, at least one, whose ``prev_seq`` the caller keeps right."""
        due_at = copy.due_at if copy.is_open else None
        keep = max(1.0, now + copy.keep_seconds - max(now, due_at or 0.0))
        parts = list(_split(copy.events, stream.connection.max_payload_bytes - HEADER_BYTES))
        header = LogHeader(_epoch_of(copy), prev_seq, 0, 0, 0, keep, due_at, copy.owner)
        if copy.deleted:
            header.deleted = True
            yield header, []
            return
        for events in parts or [[]]:
            bodies = [b"{" + one.event.json.partition(b",")[2] for one in events]
            header.offset = copy.cursor.offset - len(events)
            header.chain = header.last_chain = copy.cursor.chain
            if events:
                header.offset = events[0].event.offset - 1
                header.chain = _chain_before(copy, events[0])
                header.last_chain = events[-1].event.chain
            header.facts = [
                EventRun(count, producer, number, "", StateChange.KEEP, None, 0, False)
                for producer, number, count in runs_of(events)
            ]
            yield header, bodies

    async def _put_states(self, stream: Stream, copy: TopicCopy, ledger: Ledger) -> None:
        log = self._subjects.log(copy.topic)
        slots = asyncio.Semaphore(STORES_AT_ONCE)

        async def store(subject: str, data: bytes) -> None:
            async with slots:
                await stream.publish(subject, data, ledger.seq, expected_on=log, rollup=True)

        changed = {}
        for key, event in copy.states.items():
            try:
                offset = offset_of(event)
            except ValueError:
                # Another program has written it; no reader gets it.
                continue
            ledger.keys[key] = offset
            changed[key] = event
        known = await stream.read_last([self._subjects.state(copy.topic, key) for key in changed])
        stored = {subject: one.data for subject, one in known.items()}
        async with asyncio.TaskGroup() as group:
            for key, event in changed.items():
                subject = self._subjects.state(copy.topic, key)
                if stored.get(subject) != event:
                    group.create_task(store(subject, event))
        ledger.offset, ledger.chain, ledger.owner = (
            copy.cursor.offset,
            copy.cursor.chain,
            copy.owner,
        )
        ledger.numbers = {name: last.number for name, last in copy.producers.items()}
        oldest_first = sorted(copy.jobs.items(), key=lambda one: one[1].changed_at)
        ledger.jobs = {
            job: JobAttempt(one.attempt, one.ended_at, one.token) for job, one in oldest_first
        }
        oldest_page = ledger.pages[0]
        checkpoint = encode_checkpoint(ledger, self._settings.retention_events)
        if len(checkpoint) > stream.connection.max_payload_bytes:
            raise BackendRefused(
                f"the checkpoint of {copy.topic} has {len(checkpoint)} bytes, and the server's "
                f"max_payload is {stream.connection.max_payload_bytes}"
            )
        await store(self._subjects.checkpoint(copy.topic), checkpoint)
        if ledger.pages[0] != oldest_page:
            await stream.purge(log, ledger.pages[0][1])


async def _place_of(stream: Stream, log: TopicLog | None) -> str:
    if log is None or await stream.is_past(log.ledger.alive_until):
        return UNKNOWN
    if log.ledger.deleted:
        return DELETED
    return str(log.ledger.cursor) if log.ledger.seq else UNKNOWN


def _epoch_of(copy: TopicCopy) -> str:
    # Of a deleted topic nobody compares it, but a message needs one.
    return DELETED if copy.deleted else copy.cursor.epoch


def _chain_before(copy: TopicCopy, one: CopiedEvent) -> int:
    """Return the chain before an event of a copy."""
    return position_before(copy.cursor.epoch, one.event).chain


def _split(events: Sequence[CopiedEvent], max_bytes: int) -> Iterator[list[CopiedEvent]]:
    part: list[CopiedEvent] = []
    size = 0
    for one in events:
        if part and (len(part) >= MESSAGE_EVENTS or size + len(one.event.json) > max_bytes):
            yield part
            part, size = [], 0
        part.append(one)
        size += len(one.event.json)
    if part:
        yield part


def _is_topic(name: str) -> bool:
    try:
        check_topic(name)
    except TopicError:
        return False
    return True
