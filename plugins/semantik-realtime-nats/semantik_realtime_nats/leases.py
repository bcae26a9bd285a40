"""All leases of a process. Their number costs nothing while they are only renewed.

A web server has a lease for each connection and renews them all every few
seconds. So a place is stored once, with the name of a session of the process,
and what is renewed is the session: one message for all places of the same
duration. A renewal that needs nothing but that, and a release, do not wait for
the loop; and a process that stops ends its sessions, and with them all places.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from weakref import WeakValueDictionary

import msgspec
from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.errors import BackendError

from semantik_realtime_nats.clock import read_steady_clock
from semantik_realtime_nats.conflicts import retry_conflicts
from semantik_realtime_nats.errors import SequenceConflict
from semantik_realtime_nats.lease import Known, leave_place, read_lease, remove_places, take_place
from semantik_realtime_nats.places import REWRITE_SECONDS, Place
from semantik_realtime_nats.sessions import Session, check_session, end_session, renew_session
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects

logger = logging.getLogger(__name__)

SESSION_SECONDS = 30.0
"""A shorter lease has no session: it is stored at each call, so that its success says that the
server accepts writes now."""
MAX_SESSIONS = 8
"""Durations with a session; leases of a further one have none."""
MAX_LEFT = 20_000
"""Released places that the server does not know of yet; then their sessions are left to end."""
LEAVE_AT_ONCE = 32
LEAVE_RETRY_SECONDS = 2.0
END_SECONDS = 1.0
"""How long the end of the sessions may take when the process stops."""


class Held(msgspec.Struct, eq=False, gc=False):
    """A place of this process."""

    session: Session
    seq: int
    """The stream's sequence of the message that has it."""
    stored_at: float
    """By the steady clock, like the next."""
    ends_at: float
    """When it ends unless it is renewed."""


class Leases:
    """Takes, renews and releases places. On the writer's loop, but for the two ``…_at_once``.

    Args:
        subjects: of the application.
        connected: yields the stream on an open connection.
    """

    def __init__(
        self, subjects: Subjects, connected: Callable[[], AbstractAsyncContextManager[Stream]]
    ) -> None:
        self._subjects = subjects
        self._connected = connected
        # By duration.
        self._sessions: dict[float, Session] = {}
        # The places of this process that have a session, by lease and holder.
        self._held: dict[tuple[str, str], Held] = {}
        # What is stored of the leases in which this process has a place.
        self._known: dict[str, Known] = {}
        # Places that were released, lease and holder; other threads append.
        self._left: deque[tuple[str, str]] = deque()
        # The same by lease, moved here on the loop; until they are removed at the server.
        self._leaving: dict[str, set[str]] = {}
        # Removes them; None while there are none.
        self._removing: asyncio.Task[None] | None = None
        # Held while a session is stored, and while a lease is.
        self._session_lock = asyncio.Lock()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def close(self, stream: Stream | None) -> None:
        """End all sessions, on the connection if there is one. Without it they run out."""
        if self._removing is not None:
            await stop_tasks([self._removing])
        sessions = list(self._sessions.values())
        self._sessions.clear()
        self._held = {}
        if stream is None:
            return
        with contextlib.suppress(BackendError, SequenceConflict, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                for session in sessions:
                    await end_session(stream, self._subjects, session)

    def forget(self) -> None:
        """After a new connection: find out what the server still has."""
        self._known.clear()
        for session in self._sessions.values():
            session.is_checked = False

    # In any thread.

    def renew_at_once(self, name: str, holder: str, seconds: float) -> bool:
        """Renew a place if its session needs nothing now. Return False if that is not enough."""
        held = self._held.get((name, holder))
        if held is None or held.session.seconds != seconds:
            return False
        now = read_steady_clock()
        if (
            now >= held.ends_at
            or now >= held.stored_at + REWRITE_SECONDS
            or not held.session.is_fresh(now)
        ):
            return False
        held.ends_at = now + seconds
        return True

    def release_at_once(self, name: str, holder: str) -> bool:
        """Note that a place of this process is released; `begin_leaving` must be called then.

        Return False if it is none of those that are known to be held.
        """
        held = self._held.get((name, holder))
        if held is None or read_steady_clock() >= held.ends_at:
            return False
        # Before it is removed: a reader must find it in one of the two at any moment.
        self._left.append((name, holder))
        self._held.pop((name, holder), None)
        return True

    # On the loop.

    async def lease(
        self, stream: Stream, name: str, holder: str, limit: int, seconds: float
    ) -> bool:
        """See `semantik_realtime.hookspecs.Backend.lease`."""
        session = await self._session(stream, seconds)
        if self.renew_at_once(name, holder, seconds):
            return True

        @retry_conflicts
        async def take() -> Known | None:
            known, leaving = await self._current(stream, name)
            now = await stream.now()
            place = Place(now + seconds, session.name if session else "")
            taken = await take_place(stream, self._subjects, known, name, holder, limit, place, now)
            if taken is not None:
                self._removed(name, leaving)
            return taken

        async with self._lock(name):
            self._held.pop((name, holder), None)
            taken = await take()
            if taken is not None and session is not None:
                now = read_steady_clock()
                self._held[name, holder] = Held(session, taken.seq, now, now + seconds)
                self._known[name] = taken
            return taken is not None

    async def release(self, stream: Stream, name: str, holder: str) -> bool:
        """See `semantik_realtime.hookspecs.Backend.release`."""

        @retry_conflicts
        async def leave() -> bool:
            known, leaving = await self._current(stream, name)
            was_held, after = await leave_place(
                stream, self._subjects, known, name, holder, await stream.now()
            )
            if after is not known:
                self._removed(name, leaving)
            self._remember(name, after)
            return was_held

        async with self._lock(name):
            self._held.pop((name, holder), None)
            return await leave()

    def begin_leaving(self) -> None:
        """Remove the released places at the server, in a task."""
        if self._removing is None or self._removing.done():
            self._removing = asyncio.create_task(
                self._remove_left(), name="semantik-realtime-leases"
            )

    async def _remove_left(self) -> None:
        while True:
            self._sort_left()
            if not self._leaving:
                return
            names = list(self._leaving)[:LEAVE_AT_ONCE]
            try:
                async with self._connected() as stream:
                    await asyncio.gather(*(self._remove(stream, name) for name in names))
            except BackendError as error:
                logger.debug("leases: released places wait error=%s", error)
                await asyncio.sleep(LEAVE_RETRY_SECONDS)

    async def _remove(self, stream: Stream, name: str) -> None:
        @retry_conflicts
        async def remove() -> None:
            leaving = set(self._leaving.get(name, ()))
            known = self._known.pop(name, None) or await self._read(stream, name)
            now = await stream.now()
            after = await remove_places(stream, self._subjects, known, name, leaving, now)
            self._removed(name, leaving)
            self._remember(name, after)

        async with self._lock(name):
            await remove()

    async def _current(self, stream: Stream, name: str) -> tuple[Known, set[str]]:
        """Return what is stored of a lease, without the places that are released; and those."""
        self._sort_left()
        leaving = set(self._leaving.get(name, ()))
        known = self._known.pop(name, None) or await self._read(stream, name)
        if leaving.isdisjoint(known.places):
            return known, leaving
        kept = {other: one for other, one in known.places.items() if other not in leaving}
        return Known(known.seq, kept), leaving

    def _sort_left(self) -> None:
        if len(self._left) + len(self._leaving) > MAX_LEFT:
            # The server cannot be reached for long. What they hold ends with them.
            for session in list(self._sessions.values()):
                self._drop(session)
        while self._left:
            name, holder = self._left.popleft()
            self._leaving.setdefault(name, set()).add(holder)

    def _removed(self, name: str, holders: set[str]) -> None:
        """The server has none of ``holders`` any more."""
        left = self._leaving.get(name)
        if left is not None:
            left -= holders
            if not left:
                del self._leaving[name]

    def _remember(self, name: str, known: Known) -> None:
        if any((name, holder) in self._held for holder in known.places):
            self._known[name] = known

    async def _read(self, stream: Stream, name: str) -> Known:
        return await read_lease(stream, self._subjects.lease(name))

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    # Sessions.

    async def _session(self, stream: Stream, seconds: float) -> Session | None:
        """Return the session of a duration, renewed if that is due; None if it has none."""
        if seconds < SESSION_SECONDS:
            return None
        async with self._session_lock:
            session = self._sessions.get(seconds)
            if session is not None and not session.is_checked:
                session = await self._check(stream, session)
            if session is None:
                if len(self._sessions) >= MAX_SESSIONS:
                    return None
                session = self._sessions[seconds] = Session(secrets.token_hex(8), seconds)
            if session.is_fresh(read_steady_clock()):
                return session
            try:
                await renew_session(stream, self._subjects, session)
            except SequenceConflict:
                # It has ended: this process could not renew it in time.
                self._drop(session)
                session = self._sessions[seconds] = Session(secrets.token_hex(8), seconds)
                await renew_session(stream, self._subjects, session)
            self._leave_overdue(session)
        return session

    async def _check(self, stream: Stream, session: Session) -> Session | None:
        """Find out what the server has of a session, and forget the places that it has lost."""
        if not await check_session(stream, self._subjects, session):
            self._drop(session)
            return None
        # Nobody else writes it. So the server has everything that was stored before it.
        self._held = {
            place: held
            for place, held in self._held.items()
            if held.session is not session or held.seq <= session.seq
        }
        return session

    def _drop(self, session: Session) -> None:
        """Forget a session that has ended, and its places, which have ended with it."""
        self._sessions.pop(session.seconds, None)
        self._held = {
            place: held for place, held in self._held.items() if held.session is not session
        }
        self._known.clear()
        if not self._sessions:
            self._left.clear()
            self._leaving.clear()

    def _leave_overdue(self, session: Session) -> None:
        """Release places that were not renewed in time, which their session would lengthen."""
        now = read_steady_clock()
        for place, held in list(self._held.items()):
            if held.session is session and held.ends_at <= now:
                self._left.append(place)
                self._held.pop(place, None)
        if self._left:
            self.begin_leaving()
