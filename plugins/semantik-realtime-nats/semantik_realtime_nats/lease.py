"""One lease in the stream: its places are one message, replaced on condition that it is the last.

A place ends at a time of its own, or with the session of its holder's process
(`sessions.Session`), whichever is later.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Set

import msgspec

from semantik_realtime_nats import places as rules
from semantik_realtime_nats.conflicts import retry_conflicts
from semantik_realtime_nats.places import Place, Places
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects


class Known(msgspec.Struct, frozen=True, gc=False):
    """What is stored of a lease."""

    seq: int
    """The stream's sequence of its message; 0: there is none."""
    places: Places


async def read_lease(stream: Stream, subject: str) -> Known:
    """Read a lease."""
    stored = (await stream.read_last([subject])).get(subject)
    return Known(stored.seq, rules.decode(stored.data)) if stored else Known(0, {})


async def take_place(
    stream: Stream,
    subjects: Subjects,
    known: Known,
    name: str,
    holder: str,
    limit: int,
    place: Place,
    now: float,
) -> Known | None:
    """Store ``holder``'s place, and return what is stored then; None if no place is free.

    Raises:
        SequenceConflict: something else is stored than what is known.
    """
    places = {other: one for other, one in known.places.items() if one.is_stored_at(now)}
    after = rules.with_place(places, holder, place, limit)
    if after is None or not place.session:
        # Only now, for it is another request: who of them is really there?
        sessions = await read_sessions(stream, subjects, rules.sessions_of(places))
        after = rules.with_place(rules.alive(places, now, sessions), holder, place, limit)
    if after is None:
        return None
    return await _store(stream, subjects.lease(name), known, after, now)


async def leave_place(
    stream: Stream, subjects: Subjects, known: Known, name: str, holder: str, now: float
) -> tuple[bool, Known]:
    """Remove ``holder``'s place. Return whether it had one, and what is stored then.

    Raises:
        SequenceConflict: something else is stored than what is known.
    """
    if holder not in known.places:
        return False, known
    own = {holder: known.places[holder]}
    sessions = await read_sessions(stream, subjects, rules.sessions_of(own))
    was_held = bool(rules.alive(own, now, sessions))
    return was_held, await remove_places(stream, subjects, known, name, {holder}, now)


async def remove_places(
    stream: Stream, subjects: Subjects, known: Known, name: str, holders: Set[str], now: float
) -> Known:
    """Remove places, and return what is stored then.

    Raises:
        SequenceConflict: something else is stored than what is known.
    """
    after = rules.without_places(known.places, holders)
    if len(after) == len(known.places):
        return known
    return await _store(stream, subjects.lease(name), known, after, now)


async def acquire_lease(
    stream: Stream, subjects: Subjects, name: str, holder: str, limit: int, seconds: float
) -> bool:
    """Take or renew a place without a session."""

    @retry_conflicts
    async def acquire() -> bool:
        known = await read_lease(stream, subjects.lease(name))
        now = await stream.now()
        place = Place(now + seconds)
        taken = await take_place(stream, subjects, known, name, holder, limit, place, now)
        return taken is not None

    return await acquire()


async def read_sessions(
    stream: Stream, subjects: Subjects, sessions: Collection[str]
) -> dict[str, float]:
    """Return when each of the sessions ends that is stored."""
    if not sessions:
        return {}
    names = {subjects.session(session): session for session in sessions}
    found = await stream.read_last(list(names))
    return {
        names[subject]: msgspec.json.decode(stored.data, type=float)
        for subject, stored in found.items()
    }


async def _store(stream: Stream, subject: str, known: Known, places: Places, now: float) -> Known:
    seq = await stream.publish(
        subject,
        rules.encode(places),
        known.seq,
        rollup=True,
        ttl_seconds=math.ceil(rules.keep_seconds(places, now)),
    )
    return Known(seq, places)
