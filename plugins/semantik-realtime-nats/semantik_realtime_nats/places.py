"""The places of a lease: who has one, and until when. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

SESSION_PLACE_SECONDS = 6 * 3600.0
"""How long a place of a session is stored after its holder has stored it last."""
REWRITE_SECONDS = SESSION_PLACE_SECONDS / 2
"""After so long its holder stores it again."""

ENDED = 0.0
"""In place of the time when a session ends: its process has ended it, and with it all places."""


class Place(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One holder's place."""

    ends_at: float
    """When it ends, unless its session lives longer: the server's clock, in seconds since 1970."""
    session: str = ""
    """The session of the holder's process, which lengthens the place; empty: none does."""

    def is_stored_at(self, now: float) -> bool:
        """Return True if it may still count: later it is rubbish, whatever its session does."""
        return now < self.ends_at + (SESSION_PLACE_SECONDS if self.session else 0.0)


Places = dict[str, Place]
"""The place of each holder of a lease."""

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Places).decode


def sessions_of(places: Places) -> set[str]:
    """Return the sessions that decide about the places.

    >>> sessions_of({"a": Place(40.0, "s"), "b": Place(10.0)})
    {'s'}
    """
    return {place.session for place in places.values() if place.session}


def alive(places: Places, now: float, sessions: Mapping[str, float]) -> Places:
    """Return the places that count.

    Args:
        places: all that are stored.
        now: the server's clock, in seconds since 1970.
        sessions: when each session ends that is stored; 0.0: its process has ended it.

    >>> places = {"a": Place(40.0), "b": Place(10.0, "s"), "c": Place(10.0), "d": Place(40.0, "t")}
    >>> sorted(alive(places, 20.0, {"s": 30.0, "t": 0.0}))
    ['a', 'b']
    """
    return {holder: place for holder, place in places.items() if _counts(place, now, sessions)}


def _counts(place: Place, now: float, sessions: Mapping[str, float]) -> bool:
    session_ends_at = sessions.get(place.session)
    if session_ends_at == ENDED:
        return False
    if place.ends_at > now:
        return True
    return session_ends_at is not None and session_ends_at > now and place.is_stored_at(now)


def with_place(places: Places, holder: str, place: Place, limit: int) -> Places | None:
    """Return the places when ``holder`` takes or renews one; None if none of ``limit`` is free.

    >>> with_place({"a": Place(40.0)}, "a", Place(50.0), limit=1)
    {'a': Place(ends_at=50.0, session='')}
    >>> with_place({"a": Place(40.0)}, "b", Place(50.0), limit=1)
    """
    if holder not in places and len(places) >= limit:
        return None
    return places | {holder: place}


def without_places(places: Places, holders: Collection[str]) -> Places:
    """Return the places when ``holders`` have left theirs.

    >>> without_places({"a": Place(40.0), "b": Place(50.0)}, {"a"})
    {'b': Place(ends_at=50.0, session='')}
    """
    return {other: place for other, place in places.items() if other not in holders}


def keep_seconds(places: Places, now: float) -> float:
    """Return how long the message with the places must be kept."""
    ends = (
        place.ends_at + (SESSION_PLACE_SECONDS if place.session else 0.0)
        for place in places.values()
    )
    return max(1.0, max(ends, default=now) - now)
