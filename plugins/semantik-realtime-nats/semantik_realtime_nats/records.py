"""The messages of a topic's log: how an append is encoded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from zlib import crc32

import msgspec
from semantik_realtime.core.event import Cursor, Draft, Event, StateChange, link, with_offset
from semantik_realtime.core.readable import is_cursor

_encode = msgspec.json.Encoder().encode


class EventRun(msgspec.Struct, array_like=True, tag="run"):
    """Consecutive events whose facts differ only in their number, which grows by one."""

    count: int
    producer: str
    number: int
    """Of the first event."""
    key: str
    change: StateChange
    job: str | None
    attempt: int
    terminal: bool

    def continues_with(self, draft: Draft, attempt: int) -> bool:
        """Return True if ``draft``, of ``attempt``, is the next event of the run."""
        return (
            self.producer == draft.producer
            and self.number + self.count == draft.number
            and self.key == draft.key
            and self.change is draft.change
            and self.job == draft.job
            and self.attempt == attempt
            and self.terminal == draft.terminal
        )


class JobForgotten(msgspec.Struct, array_like=True, tag="forgotten"):
    """A job was removed, so that the number of keys or jobs stays within its limit."""

    job: str


class AttemptClaimed(msgspec.Struct, array_like=True, tag="claimed"):
    """A new attempt of a job got its number."""

    job: str
    attempt: int
    token: str


Fact = EventRun | JobForgotten | AttemptClaimed
"""What a message changes in the ledger, beside the bodies of its events."""


class LogHeader(msgspec.Struct, omit_defaults=True):
    """The first line of a message, as JSON: its position, and the facts for the ledger."""

    epoch: str
    prev_seq: int
    """The stream's sequence of the log's message before; 0 for the first of an epoch."""
    offset: int
    """The offset before the message's first event."""
    chain: int
    """The chain before the message's first event."""
    last_chain: int
    """The chain after its last event."""
    keep_seconds: float
    """The topic expires this long after the message, unless another one follows."""
    due_at: float | None = None
    """By a clock, in seconds since 1970: ``keep_seconds`` begin then, if that is later."""
    owner: str | None = None
    facts: list[Fact] = []
    deleted: bool = False

    def expires_at(self, stored_at: float) -> float:
        """Return when the topic expires, in seconds since 1970, like ``stored_at``."""
        return max(stored_at, self.due_at or 0.0) + self.keep_seconds

    def encode(self, bodies: Sequence[bytes]) -> bytes:
        """Return the message: this header, and each event's body in a line of its own."""
        return b"\n".join([_encode(self), *bodies])


_decode_header = msgspec.json.Decoder(LogHeader).decode


class LogMessage(msgspec.Struct, frozen=True):
    """One append (or claim, or deletion), as the stream has it."""

    seq: int
    """The stream's sequence; 0 if the message came from a subscription."""
    stored_at: float
    """By the server's clock, in seconds since 1970; 0.0 if it came from a subscription."""
    header: LogHeader
    bodies: Sequence[bytes]

    @classmethod
    def decode(cls, seq: int, stored_at: float, data: bytes) -> LogMessage:
        """Decode what `LogHeader.encode` returned.

        Raises:
            ValueError: no writer has made it.
        """
        line, _, rest = data.partition(b"\n")
        message = cls(seq, stored_at, _decode_header(line), rest.split(b"\n") if rest else ())
        counts = (fact.count for fact in message.header.facts if isinstance(fact, EventRun))
        if sum(counts) != len(message.bodies) or not is_cursor(message.cursor):
            raise ValueError("it is no message of a log")
        return message

    @property
    def cursor(self) -> Cursor:
        """The position after the message."""
        header = self.header
        return Cursor(header.epoch, header.offset + len(self.bodies), header.last_chain)

    @property
    def size(self) -> int:
        """About how many bytes its events have, without their offsets."""
        return sum(map(len, self.bodies))

    @property
    def is_unknown(self) -> bool:
        """True if readers do not know the topic after it: it is deleted, or only claimed."""
        return self.header.deleted or self.cursor.offset == 0

    @property
    def expires_at(self) -> float:
        """When the topic expires, by the server's clock, provided that this is its last message."""
        return self.header.expires_at(self.stored_at)

    def events(self) -> Iterator[Event]:
        """Yield its events."""
        offset, chain = self.header.offset, self.header.chain
        for body in self.bodies:
            offset += 1
            chain = link(chain, crc32(body))
            yield Event(offset, chain, with_offset(body, offset))

    def numbers(self) -> Iterator[tuple[str, int]]:
        """Yield the producer and the number of each event."""
        for fact in self.header.facts:
            if isinstance(fact, EventRun):
                for number in range(fact.number, fact.number + fact.count):
                    yield fact.producer, number
