"""The places that this process holds: most of their renewals need no call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import msgspec

from semantik_realtime.backends.redis.refusals import explain_for_key
from semantik_realtime.backends.redis.script import LEASE, milliseconds
from semantik_realtime.backends.redis.writer import Writer
from semantik_realtime.errors import BackendError
from semantik_realtime.native_threads import make_lock

LEAST_SECONDS = 30.0
"""Shorter leases are renewed at the server each time: the guard's probe must reach it."""
RENEWED_AT_ONCE = 500
"""Places that are renewed in one round trip."""

_Place = tuple[str, str]
"""The name and the holder."""


class _Lease(msgspec.Struct, gc=False):
    limit: int
    seconds: float
    due_at: float
    """When half of its time is over, on the monotonic clock."""
    asked_at: float
    """When it was asked for last."""


class Leases:
    """See `semantik_realtime.hookspecs.Backend.lease` and ``release``. From any thread.

    A place is renewed at the server only when half of its time is over, and then in one round
    trip with all others of which that is true: a web server renews thousands of them every few
    seconds. One that nobody has asked for since is not renewed.

    Args:
        writer: runs the script.
        key_of: the key of a lease's name.
    """

    def __init__(self, writer: Writer, key_of: Callable[[str], str]) -> None:
        self._writer = writer
        self._key_of = key_of
        # The places of `LEAST_SECONDS` and more, those that are due first in front if all have the
        # same duration; changed under the lock.
        self._held: dict[_Place, _Lease] = {}
        self._lock = make_lock()

    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        place, now = (name, holder), time.monotonic()
        with self._lock:
            held = self._held.get(place)
            if held is not None and (held.limit, held.seconds) == (limit, seconds):
                held.asked_at = now
                if now < held.due_at:
                    return True
            due = self._take_due(place, now) if held is not None else {}
        wanted = {place: _Lease(limit, seconds, now + seconds / 2, now), **due}
        granted = self._writer.run_each(
            LEASE,
            [
                ([self._key_of(name)], [holder, one.limit, milliseconds(one.seconds)])
                for (name, holder), one in wanted.items()
            ],
        )
        released = []
        with self._lock:
            for (each, one), reply in zip(wanted.items(), granted, strict=True):
                was_held = self._held.pop(each, None) is not None
                if reply != 1 or one.seconds < LEAST_SECONDS:
                    continue
                if was_held or each == place:
                    # At the end: it is due last.
                    self._held[each] = one
                else:
                    released.append(each)
        for name, holder in released:
            # In the meantime, and perhaps before it was renewed.
            with contextlib.suppress(BackendError):
                self.release(name, holder)
        if isinstance(granted[0], Exception):
            raise explain_for_key(self._key_of(place[0]), granted[0])
        return bool(granted[0])

    def release(self, name: str, holder: str) -> bool:
        with self._lock:
            self._held.pop((name, holder), None)
        key = self._key_of(name)
        return bool(self._writer.command(key, "ZREM", key, holder))

    def forget(self) -> None:
        """Hold nothing: a fork has the places of its parent."""
        self._held, self._lock = {}, make_lock()

    def _take_due(self, wanted: _Place, now: float) -> dict[_Place, _Lease]:
        """Return the other places that are due, with the time until which they will be renewed.

        Forget those that nobody has asked for since they were renewed.
        """
        due: dict[_Place, _Lease] = {}
        for place, one in list(self._held.items()):
            if now < one.due_at or len(due) >= RENEWED_AT_ONCE:
                break
            if one.asked_at <= one.due_at - one.seconds / 2:
                del self._held[place]
            elif place != wanted:
                due_at = now + one.seconds / 2
                due[place] = _Lease(one.limit, one.seconds, due_at, one.asked_at)
        return due
