"""Reading one topic's log, and folding it into a ledger."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Iterable

import msgspec
from semantik_realtime.backends.border import note

from semantik_realtime_nats.ledger import PAGE_EVENTS, Gap, Ledger
from semantik_realtime_nats.records import LogMessage
from semantik_realtime_nats.stored import StoredMessage
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects

BEHIND_PAUSE_SECONDS = 0.005
READ_BACK_FACTOR = 4
"""How many times as many older events are read at once as newer ones are known: a log has no
index by bytes, and the older events may be larger."""


class TopicLog:
    """A topic's ledger, and the newest messages of its log, as of one moment."""

    def __init__(
        self,
        stream: Stream,
        subjects: Subjects,
        topic: str,
        ledger: Ledger,
        messages: list[LogMessage],
    ) -> None:
        self.ledger = ledger
        self.messages = messages
        """Consecutive messages up to the last one: those that were folded after the checkpoint."""
        self._stream = stream
        self._subjects = subjects
        self._topic = topic

    @classmethod
    async def read(cls, stream: Stream, subjects: Subjects, topic: str) -> TopicLog | None:
        """Read what is stored of a topic; None if it has no log.

        A topic that was deleted or has expired still has a log: the next append is conditional
        on its last sequence.
        """
        while True:
            log, checkpoint = subjects.log(topic), subjects.checkpoint(topic)
            found = await stream.read_last([log, checkpoint])
            if log not in found:
                return None
            last = decode_message(topic, found[log])
            if last is None:
                return await cls._read_before(stream, subjects, topic, found)
            ledger = Ledger(last.header.epoch, deleted=last.header.deleted)
            if checkpoint in found and not ledger.deleted:
                restored = decode_checkpoint(found[checkpoint].data)
                if restored.epoch == ledger.epoch:
                    ledger = restored
            if ledger.deleted or ledger.seq == last.seq:
                # The ledger is complete; this sets when it expires.
                ledger.commit(last.header, last.seq, last.stored_at)
                return cls(stream, subjects, topic, ledger, [last])
            if last.header.prev_seq == ledger.seq:
                messages = [last]
            else:
                messages = await read_messages(stream, subjects, topic, ledger.seq + 1)
                if not messages or messages[-1].seq < last.seq:
                    # Another server of a cluster has answered, which is behind.
                    await asyncio.sleep(BEHIND_PAUSE_SECONDS)
                    continue
            try:
                for message in messages:
                    ledger.apply(message)
            except Gap:
                # The log was trimmed, or a new epoch began, after its end was read.
                continue
            return cls(stream, subjects, topic, ledger, messages)

    @classmethod
    async def _read_before(
        cls, stream: Stream, subjects: Subjects, topic: str, found: dict[str, StoredMessage]
    ) -> TopicLog:
        """Read a topic's log up to the last message that a writer has made.

        Another program has published a later one. The next append comes after that one, and
        begins a new epoch if no message is left to continue.
        """
        checkpoint, end_seq = found.get(subjects.checkpoint(topic)), found[subjects.log(topic)].seq
        ledger = decode_checkpoint(checkpoint.data) if checkpoint else Ledger("")
        messages = await read_messages(stream, subjects, topic, max(1, ledger.seq))
        with contextlib.suppress(Gap):
            for message in messages:
                if message.header.deleted or message.header.prev_seq == 0:
                    ledger = Ledger(message.header.epoch)
                if message.seq > ledger.seq:
                    ledger.apply(message)
            if messages and ledger.seq == messages[-1].seq:
                ledger.commit(messages[-1].header, ledger.seq, messages[-1].stored_at)
                ledger.expected_seq = end_seq
                return cls(stream, subjects, topic, ledger, messages)
        return cls(stream, subjects, topic, Ledger.begin(end_seq), [])

    async def read_after(self, offset: int, limit: int, max_bytes: int) -> list[LogMessage]:
        """Return messages with the oldest stored events after ``offset``.

        They go on to the ledger's end, or until they have ``limit`` events after ``offset`` or
        more than ``max_bytes`` bytes of them. The first one may begin before ``offset``.

        Raises:
            Gap: the log has been trimmed, or another epoch has begun.
        """
        if self.messages and self.messages[0].header.offset <= offset:
            return self.messages
        end_seq = self.ledger.seq
        subject = self._subjects.log(self._topic)
        messages: list[LogMessage] = []
        count = size = 0
        async for part in self._stream.read_parts(subject, self.ledger.find_seq(offset)):
            for message in decode_messages(self._topic, part):
                if message.seq > end_seq:
                    raise Gap("the end of the log is gone")
                messages.append(message)
                if message.seq == end_seq:
                    return messages
                count += max(0, min(len(message.bodies), message.cursor.offset - offset))
                size += message.size if message.header.offset >= offset else 0
                if count >= limit or size > max_bytes:
                    return messages
        raise Gap("the end of the log is gone")

    async def read_newest(self, count: int, max_bytes: int) -> list[LogMessage]:
        """Return messages with the newest ``count`` events up to the ledger's end, or fewer.

        Fewer if they have more than ``max_bytes`` bytes, or if older ones are no longer stored.
        """
        subject = self._subjects.log(self._topic)
        messages = self.messages
        while True:
            first = messages[0]
            found = sum(len(message.bodies) for message in messages)
            size = sum(message.size for message in messages)
            older = [seq for _, seq in self.ledger.pages if seq < first.seq]
            if found >= count or size > max_bytes or not older or not first.header.prev_seq:
                return messages
            # As many as fit if they are like those found so far, but not many more than those.
            fitting = (max_bytes - size) * max(found, 1) // max(size, 1) + 1
            missing = min(count - found, fitting, READ_BACK_FACTOR * max(found, PAGE_EVENTS))
            seq = min(older[-1], self.ledger.find_seq(max(0, first.header.offset - missing)))
            page: list[LogMessage] = []
            async for part in self._stream.read_parts(subject, seq):
                older_part = [stored for stored in part if stored.seq < first.seq]
                page += decode_messages(self._topic, older_part)
                if part and part[-1].seq >= first.header.prev_seq:
                    break
            if not page or page[-1].seq != first.header.prev_seq:
                return messages
            messages = page + messages

    async def read_states(self) -> dict[str, bytes]:
        """Return, for each key with a state, the event that has it.

        The ledger may be at a later position afterwards; the states are those at that position.

        Raises:
            Gap: the ledger is outdated; read the topic again.
        """
        ledger = self.ledger
        subjects = {
            key: self._subjects.state(self._topic, key)
            for key in ledger.keys
            if key not in ledger.changed
        }
        found = await self._stream.read_last(list(subjects.values()))
        stored = {key: found[name].data for key, name in subjects.items() if name in found}
        if not _have_all_states(ledger, stored):
            # A writer stored newer states in the meantime; their events are in the log.
            self.messages += await catch_up(self._stream, self._subjects, self._topic, ledger)
            if not _have_all_states(ledger, stored):
                raise Gap("the states do not belong to this log")
        return {key: ledger.changed.get(key) or stored[key] for key in ledger.keys}


async def read_messages(
    stream: Stream, subjects: Subjects, topic: str, seq: int
) -> list[LogMessage]:
    """Return the messages of a topic's log with the sequence ``seq`` or a later one."""
    return decode_messages(topic, await stream.read_from(subjects.log(topic), seq))


async def catch_up(
    stream: Stream, subjects: Subjects, topic: str, ledger: Ledger
) -> list[LogMessage]:
    """Apply what was appended after the ledger's last message, and return those messages.

    Raises:
        Gap: the log has been trimmed, or another epoch has begun. The ledger is useless.
    """
    messages = await read_messages(stream, subjects, topic, ledger.seq + 1)
    for message in messages:
        ledger.apply(message)
    return messages


def encode_checkpoint(ledger: Ledger, retention_events: int) -> bytes:
    """Return the checkpoint as it is stored. Compressed, as that of a feed has a thousand jobs."""
    return zlib.compress(ledger.checkpoint(retention_events), 1)


def decode_checkpoint(data: bytes) -> Ledger:
    """Return the ledger of a stored checkpoint."""
    return Ledger.restore(zlib.decompress(data))


def decode_message(topic: str, stored: StoredMessage) -> LogMessage | None:
    """Decode a message of a topic's log; None, and noted, if no writer has made it."""
    try:
        return LogMessage.decode(stored.seq, stored.stored_at, stored.data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        note("message", topic, f"sequence {stored.seq}", str(error))
        return None


def decode_messages(topic: str, stored: Iterable[StoredMessage]) -> list[LogMessage]:
    """Decode messages of a topic's log, without those that no writer has made."""
    decoded = (decode_message(topic, one) for one in stored)
    return [message for message in decoded if message is not None]


def offset_of(event: bytes) -> int:
    """Return the offset of an event without decoding it: it is the first member.

    >>> offset_of(b'{"offset":17,"type":"note"}')
    17
    """
    return int(event[10 : event.index(b",")])


def _have_all_states(ledger: Ledger, stored: dict[str, bytes]) -> bool:
    return all(
        key in ledger.changed or (key in stored and _is_of(stored[key], offset))
        for key, offset in ledger.keys.items()
    )


def _is_of(event: bytes, offset: int) -> bool:
    try:
        return offset_of(event) == offset
    except ValueError:
        # Another program has published it. Reading again would find the same, so it counts as the
        # state, which no reader gets then.
        return True
