"""A lease session, which lengthens all places of a process: one message, written by it alone."""

from __future__ import annotations

import math

import msgspec

from semantik_realtime_nats.clock import read_steady_clock
from semantik_realtime_nats.errors import NoReply
from semantik_realtime_nats.places import ENDED
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects


class Session(msgspec.Struct, eq=False):
    """What lengthens the places of one duration. Its message has the time when it ends."""

    name: str
    seconds: float
    seq: int = 0
    """The stream's sequence of its message; 0 before the first one."""
    renewed_at: float = float("-inf")
    """By the steady clock."""
    is_checked: bool = True
    """False after a new connection: the server may have lost what was stored last."""

    def is_fresh(self, now: float) -> bool:
        """Return True if it need not be renewed: three quarters of its time are left."""
        return self.is_checked and now < self.renewed_at + self.seconds / 4


async def renew_session(stream: Stream, subjects: Subjects, session: Session) -> None:
    """Store that the session goes on.

    Raises:
        SequenceConflict: it has ended.
    """
    renewed_at = read_steady_clock()
    await _store(stream, subjects, session, await stream.now() + session.seconds)
    session.renewed_at = renewed_at


async def end_session(stream: Stream, subjects: Subjects, session: Session) -> None:
    """Store that the session has ended.

    Raises:
        SequenceConflict: it had ended already.
    """
    await _store(stream, subjects, session, ENDED)


async def check_session(stream: Stream, subjects: Subjects, session: Session) -> bool:
    """Find out what the server has of the session. Return False if it has ended."""
    subject = subjects.session(session.name)
    stored = (await stream.read_last([subject])).get(subject)
    if stored is None:
        return False
    session.seq, session.is_checked, session.renewed_at = stored.seq, True, float("-inf")
    return True


async def _store(stream: Stream, subjects: Subjects, session: Session, ends_at: float) -> None:
    try:
        session.seq = await stream.publish(
            subjects.session(session.name),
            msgspec.json.encode(ends_at),
            session.seq,
            rollup=True,
            # After that the places that name it are over by themselves.
            ttl_seconds=math.ceil(session.seconds),
        )
    except NoReply:
        # Whether it is stored is seen on the next connection.
        session.is_checked = False
        raise
