"""How long a topic is kept after its last event.

``append.lua`` and ``claim.lua`` have the same rule for Redis; the contract suite tests both.
"""

from __future__ import annotations

import msgspec

from semantik_realtime.core.topic import split_topic

_OWN = "job:"


class Retention(msgspec.Struct, frozen=True):
    """The settings of the same names, in seconds."""

    retention_seconds: float
    grace_seconds: float
    open_seconds: float


def own_job(topic: str) -> str | None:
    """Return the id of the job whose own topic it is; None: it is a feed.

    >>> own_job("job:17"), own_job("job:import~3A42"), own_job("user:7")
    ('17', 'import:42', None)
    """
    if not topic.startswith(_OWN):
        return None
    return split_topic(topic)[1] if "~" in topic else topic.removeprefix(_OWN)


def expires_at(
    now: float, retention: Retention, *, ends: bool, is_open: bool, due_at: float | None = None
) -> float:
    """Return when a topic expires that gets an event, or an attempt, now.

    A job that has not ended must not vanish because it is silent, or waits for
    its time: until its end its topic is kept for ``open_seconds``.

    Args:
        now: in seconds, like the result.
        retention: the settings.
        ends: whether the event ends the topic's own job.
        is_open: whether the own job's key has a state, and the fence knows of no end of its
            newest attempt.
        due_at: when the own job is due, if it waits for a time; counted only while it is open.

    >>> retention = Retention(retention_seconds=86400, grace_seconds=3600, open_seconds=2592000)
    >>> expires_at(10.0, retention, ends=True, is_open=False)
    3610.0
    >>> expires_at(10.0, retention, ends=False, is_open=False)
    86410.0
    >>> expires_at(10.0, retention, ends=False, is_open=True)
    2592010.0
    >>> expires_at(10.0, retention, ends=False, is_open=True, due_at=1000.0)
    2593000.0
    """
    if is_open:
        begin = now if due_at is None else max(now, due_at)
        return begin + retention.open_seconds
    return now + (retention.grace_seconds if ends else retention.retention_seconds)
