"""Reading one topic's log."""

from __future__ import annotations

import zlib

from semantik_realtime_nats.ledger import Gap, Ledger, Message
from semantik_realtime_nats.link import Link, Stored
from semantik_realtime_nats.settings import Names


class Reading:
    """A topic as it was at one moment: its ledger, and the newest messages of its log.

    ``messages`` are those since the base, all in a row, the last one is the
    last of the log.
    """

    def __init__(self, ledger: Ledger, messages: list[Message]) -> None:
        self.ledger = ledger
        self.messages = messages


async def read_messages(link: Link, names: Names, topic: str, seq: int) -> list[Message]:
    """The messages of the log from a sequence of the stream on."""
    return [decode(stored) for stored in await link.read(names.log(topic), seq)]


async def read_topic(link: Link, names: Names, topic: str) -> Reading | None:
    """What can be known of a topic; None: nothing.

    A topic that is dead has a ledger too, for who wants to append to it.
    """
    while True:
        log, base = names.log(topic), names.base(topic)
        found = await link.last([log, base])
        if log not in found:
            return None
        last = decode(found[log])
        if last.head.deleted:
            ledger = Ledger(last.head.epoch)
            ledger.deleted = True
            ledger.commit(last.head, last.seq, last.at)
            return Reading(ledger, [])
        ledger = Ledger(last.head.epoch)
        if base in found:
            settled = Ledger.restore(zlib.decompress(found[base].data))
            if settled.epoch == ledger.epoch:
                ledger = settled
        if ledger.seq == last.seq:
            ledger.alive_until = last.at + last.head.keep_seconds
            return Reading(ledger, [last])
        if last.head.after == ledger.seq:
            messages = [last]
        else:
            messages = await read_messages(link, names, topic, ledger.seq + 1)
        try:
            for message in messages:
                ledger.take(message)
        except Gap:
            # The log was trimmed or began anew since we looked for its end.
            continue
        return Reading(ledger, messages)


async def catch_up(link: Link, names: Names, topic: str, ledger: Ledger) -> list[Message]:
    """Fold what was appended since; gives it.

    Raises:
        Gap: the ledger is of no use any more.
    """
    messages = await read_messages(link, names, topic, ledger.seq + 1)
    for message in messages:
        ledger.take(message)
    return messages


def encode_base(ledger: Ledger, retention_events: int) -> bytes:
    """The base as it is stored. A feed's has a thousand jobs."""
    return zlib.compress(ledger.settled(retention_events), 1)


def offset_of(event: bytes) -> int:
    """The offset that stands in front of an event.

    >>> offset_of(b'{"offset":17,"type":"note"}')
    17
    """
    return int(event[10 : event.index(b",")])


def decode(stored: Stored) -> Message:
    """A message of the log."""
    return Message.decode(stored.seq, stored.at, stored.data)
