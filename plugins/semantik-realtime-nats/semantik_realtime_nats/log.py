"""Reading one topic's log, and folding it into a ledger."""

from __future__ import annotations

import zlib

from semantik_realtime_nats.ledger import Gap, Ledger
from semantik_realtime_nats.records import LogMessage
from semantik_realtime_nats.stream import StoredMessage, Stream
from semantik_realtime_nats.subjects import Subjects


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
            last = decode_message(found[log])
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
            try:
                for message in messages:
                    ledger.apply(message)
            except Gap:
                # The log was trimmed, or a new epoch began, after its end was read.
                continue
            return cls(stream, subjects, topic, ledger, messages)

    async def read_after(self, offset: int) -> list[LogMessage]:
        """Return messages with all stored events after ``offset``, up to the ledger's end.

        Raises:
            Gap: the log has been trimmed, or another epoch has begun.
        """
        if self.messages and self.messages[0].header.offset <= offset:
            return self.messages
        end_seq = self.ledger.seq
        messages = await read_messages(
            self._stream, self._subjects, self._topic, self.ledger.find_seq(offset)
        )
        if not any(message.seq == end_seq for message in messages):
            raise Gap("the end of the log is gone")
        return [message for message in messages if message.seq <= end_seq]

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
    return [decode_message(stored) for stored in await stream.read_from(subjects.log(topic), seq)]


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


def decode_message(stored: StoredMessage) -> LogMessage:
    """Decode a message of a log."""
    return LogMessage.decode(stored.seq, stored.stored_at, stored.data)


def offset_of(event: bytes) -> int:
    """Return the offset of an event without decoding it: it is the first member.

    >>> offset_of(b'{"offset":17,"type":"note"}')
    17
    """
    return int(event[10 : event.index(b",")])


def _have_all_states(ledger: Ledger, stored: dict[str, bytes]) -> bool:
    return all(
        key in ledger.changed or (key in stored and offset_of(stored[key]) == offset)
        for key, offset in ledger.keys.items()
    )
