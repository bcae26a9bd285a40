"""Leases: the holders of each are one message, replaced on condition that it is the last one."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from semantik_realtime_nats.stream import Stream, retry_conflicts
from semantik_realtime_nats.subjects import Subjects

Holders = dict[str, float]
"""For each holder, when its place ends: the server's clock, in seconds since 1970."""


def with_holder(
    holders: Holders, holder: str, limit: int, seconds: float, now: float
) -> Holders | None:
    """Return the holders when ``holder`` acquires or renews a place; None if none is free.

    >>> with_holder({"a": 40.0}, "a", 1, 30.0, now=20.0)
    {'a': 50.0}
    >>> with_holder({"a": 40.0}, "b", 1, 30.0, now=20.0)
    """
    if holder not in holders and len(holders) >= limit:
        return None
    return holders | {holder: now + seconds}


def without_holder(holders: Holders, holder: str) -> Holders | None:
    """Return the holders when ``holder`` releases its place; None if it has none.

    >>> without_holder({"a": 40.0, "b": 50.0}, "a")
    {'b': 50.0}
    """
    if holder not in holders:
        return None
    return {other: ends_at for other, ends_at in holders.items() if other != holder}


async def acquire_lease(
    stream: Stream, subjects: Subjects, name: str, holder: str, limit: int, seconds: float
) -> bool:
    """See `semantik_realtime.hookspecs.BackendSpec.lease`."""
    return await _update(
        stream,
        subjects.lease(name),
        lambda holders, now: with_holder(holders, holder, limit, seconds, now),
    )


async def release_lease(stream: Stream, subjects: Subjects, name: str, holder: str) -> bool:
    """See `semantik_realtime.hookspecs.BackendSpec.release`."""
    return await _update(
        stream, subjects.lease(name), lambda holders, _: without_holder(holders, holder)
    )


@retry_conflicts
async def _update(
    stream: Stream, subject: str, change: Callable[[Holders, float], Holders | None]
) -> bool:
    """Store what ``change`` makes of the holders and the time; False if that is None."""
    stored = (await stream.read_last([subject])).get(subject)
    now = stream.now()
    before = msgspec.json.decode(stored.data, type=Holders) if stored else {}
    after = change({holder: end for holder, end in before.items() if end > now}, now)
    if after is None:
        return False
    await stream.publish(
        subject,
        msgspec.json.encode(after),
        stored.seq if stored else 0,
        rollup=True,
        ttl_seconds=max(1, math.ceil(max(after.values(), default=now) - now)),
    )
    return True
