"""The life of a job: the event types that report it, and the status that each sets."""

from __future__ import annotations

from collections.abc import Mapping

from semantik_realtime.core.topic import split_topic

STATUS_OF_TYPE: Mapping[str, str] = {
    "job_queued": "queued",
    "job_started": "running",
    "job_retrying": "retrying",
    "job_cancelling": "cancelling",
    "job_completed": "completed",
    "job_failed": "failed",
    "job_cancelled": "cancelled",
    "job_lost": "lost",
}
END_TYPES = frozenset({"job_completed", "job_failed", "job_cancelled", "job_lost"})
"""Types of the events that end a job's attempt, and with it the job until a newer attempt."""
ATTEMPT_ENDS = END_TYPES | {"job_retrying"}
"""Types of the last event of an attempt, also of one that another attempt follows."""
END_STATUSES = frozenset(STATUS_OF_TYPE[type] for type in END_TYPES)
"""The ``status`` of a job whose newest attempt has ended."""
_OPEN_STATUSES = frozenset(STATUS_OF_TYPE.values()) - END_STATUSES
PROGRESS = "job_progress"
"""Type of the events that only bring a newer state. Those that a later state supersedes may be
left out."""
EVENTS_DROPPED = "events_dropped"
"""Type of the event that reports, in ``data.count``, how many events of its topic were dropped."""
LOG = "log"
"""Type of the events that have a log record of the task, in ``data``, and no state."""
RESERVED_TYPES = frozenset({*STATUS_OF_TYPE, PROGRESS, EVENTS_DROPPED, "job_deleted", LOG})
"""Types that this package sends itself; a task cannot emit them."""


def has_ended(state: object) -> bool:
    """Return True if a job with ``state`` has ended.

    >>> has_ended({"status": "lost"}), has_ended({"status": "retrying"}), has_ended({})
    (True, False, False)
    """
    return _status(state) in END_STATUSES


def is_finished(topic: str, states: Mapping[str, object]) -> bool:
    """Return True if nothing more happens in a topic with ``states``, without a new attempt (R7).

    Its job has ended, and none of its other keys is a job that goes on.

    >>> is_finished("job:1", {"1": {"status": "completed"}, "page 2": {"status": "indexed"}})
    True
    >>> is_finished("job:1", {"1": {"status": "completed"}, "child": {"status": "queued"}})
    False
    >>> is_finished("user:1", {"1": {"status": "completed"}})
    False
    """
    kind, key = split_topic(topic)
    if kind != "job" or not has_ended(states.get(key)):
        return False
    return not any(_status(state) in _OPEN_STATUSES for state in states.values())


def _status(state: object) -> str:
    # A state comes from an application, and it may be anything, as may its status.
    status = state.get("status") if isinstance(state, Mapping) else None
    return status if isinstance(status, str) else ""
