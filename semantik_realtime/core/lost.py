"""Which jobs are lost, and how they end: pure rules, the time is an argument.

A job is lost if its process died, or if no worker has begun it for too long.
Before that is said, the host is asked how it ended (`outcome`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from semantik_realtime.core.leases import HeldJob
from semantik_realtime.core.lifecycle import END_STATUSES, STATUS_OF_TYPE, has_ended

State = Mapping[str, Any]

_TYPE_OF_STATUS = {status: type for type, status in STATUS_OF_TYPE.items()}
_WAITING = frozenset({"queued", "retrying"})
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
"""Times in this form are ordered as texts."""
LOST = "Lost"
"""The type of the error of a job that is lost."""


class End(NamedTuple):
    """How a server ends a job."""

    type: str
    state: dict[str, Any]


def attempt_to_end(state: State | None, worker: str, expected: int) -> int | None:
    """Return the attempt that ends with its process; None: nothing ends.

    The fence refuses the end if a newer attempt has begun than that one.

    Args:
        state: the job's state in its log; None if the log has none.
        worker: the process that held the job, and whose lease is over.
        expected: the number that the process expected for its attempt (`HeldJob`).

    >>> attempt_to_end({"status": "running", "attempt": 2, "worker": "w"}, "w", 1)
    2
    >>> attempt_to_end({"status": "running", "attempt": 2, "worker": "another"}, "w", 1)
    >>> attempt_to_end({"status": "failed", "attempt": 2, "worker": "w"}, "w", 2)

    Its attempt has ended, and the next one waits for a worker:

    >>> attempt_to_end({"status": "retrying", "attempt": 1, "worker": "w"}, "w", 1)

    It died before its ``job_started`` reached the log:

    >>> attempt_to_end({"status": "queued", "attempt": 0}, "w", 1), attempt_to_end(None, "w", 1)
    (0, 0)
    >>> attempt_to_end({"status": "retrying", "attempt": 1, "worker": "w"}, "w", 2)
    1
    """
    if state is None:
        return 0
    attempt = _attempt_of(state)
    if state.get("status") in _WAITING:
        return attempt if attempt < expected else None
    return None if has_ended(state) or state.get("worker") != worker else attempt


def waits_too_long(state: State, changed_at: str, before: str) -> bool:
    """Return True if a job has waited for a worker since ``before``.

    Args:
        state: the job's state in its log. An ``eta`` counts as the beginning of the wait.
        changed_at: the time of the event that set it.
        before: the newest time that is too long ago, as events have it.

    >>> queued = {"status": "queued", "queued_at": "2026-01-31T09:00:00.000Z"}
    >>> waits_too_long(queued, "2026-01-31T09:00:00.000Z", "2026-01-31T11:00:00.000Z")
    True
    >>> queued["eta"] = "2026-01-31T11:30:00.000Z"
    >>> waits_too_long(queued, "2026-01-31T09:00:00.000Z", "2026-01-31T11:00:00.000Z")
    False
    >>> waits_too_long({"status": "running"}, "2026-01-31T09:00:00.000Z", "2027")
    False
    """
    if state.get("status") not in _WAITING:
        return False
    times = (changed_at, state.get("queued_at"), state.get("eta"))
    known = [time for time in times if isinstance(time, str) and _TIME.fullmatch(time)]
    return bool(known) and max(known) < before


def end_of(state: State | None, record: HeldJob, outcome: State | None, time: str, why: str) -> End:
    """Return how a job ends whose process is gone, or that no worker has begun.

    Args:
        state: the job's state in its log; None if the log has none.
        record: what the process said of the job.
        outcome: how the job ended, as the host knows: a part of a state, with a ``status``
            that has ended. None, or any other: the job is lost, or cancelled if it was being
            cancelled.
        time: now, as events have it.
        why: the message of the error of a lost job.

    >>> end_of({"status": "running", "attempt": 1}, HeldJob(), None, "9:00", "it died")
    End(type='job_lost', state={'status': 'lost', 'attempt': 1, 'ended_at': '9:00', \
'error': {'type': 'Lost', 'message': 'it died'}})
    >>> end_of(None, HeldJob("index"), {"status": "completed"}, "9:00", "it died")
    End(type='job_completed', state={'status': 'completed', 'attempt': 0, 'name': 'index', \
'ended_at': '9:00'})
    """
    base: dict[str, Any] = {"status": "queued", "attempt": 0}
    if record.name is not None:
        base["name"] = record.name
    if record.queued_at is not None:
        base["queued_at"] = record.queued_at
    ended = base if state is None else dict(state)
    ended["attempt"] = _attempt_of(ended)
    ended.pop("error", None)
    ended.pop("eta", None)
    if outcome is None and ended.get("status") == "cancelling":
        # It does not run any more, which is what was asked for.
        outcome = {"status": "cancelled"}
    status = None if outcome is None else outcome.get("status")
    if outcome is None or status not in END_STATUSES or status == "lost":
        error = {"type": LOST, "message": why}
        return End("job_lost", ended | {"status": "lost", "ended_at": time, "error": error})
    ended |= {"status": status, "ended_at": outcome.get("ended_at") or time}
    if isinstance(outcome.get("error"), Mapping):
        ended["error"] = dict(outcome["error"])
    return End(_TYPE_OF_STATUS[str(status)], ended)


def known_end(state: State | None) -> End | None:
    """Return the end that a job's state in its log has; None: it has not ended.

    >>> known_end({"status": "failed", "attempt": 2})
    End(type='job_failed', state={'status': 'failed', 'attempt': 2})
    >>> known_end({"status": "running", "attempt": 2})
    """
    if state is None or not has_ended(state):
        return None
    return End(_TYPE_OF_STATUS[state["status"]], {**state, "attempt": _attempt_of(state)})


def _attempt_of(state: State) -> int:
    attempt = state.get("attempt")
    return attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else 0
