"""What a request to cancel a job does to its state, and the topic that brings it to the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from semantik_realtime.core.lifecycle import has_ended

CONTROL_TOPIC = "control:cancel"
"""Every request to cancel a job is an event ``job_cancelling`` of this topic, whose key is the job.

It has no owner, so nobody may watch it unless the host's ``authorize`` allows it.
"""
WAITING_STATUSES = frozenset({"queued", "retrying"})
"""The statuses of a job of which no task runs."""


class CancelStep(msgspec.Struct, frozen=True):
    """What a request to cancel does to a job: the event to append, or none."""

    type: str | None
    """None: the job has ended, or is being cancelled."""
    state: Mapping[str, Any]
    """The job's state afterwards."""
    attempt: int | None
    """The attempt to which the event belongs; it is stale if a newer one has begun meanwhile.
    None: the state does not tell, and the event belongs to the newest."""


def cancel_step(state: object, time: str, *, has_begun: bool = False) -> CancelStep:
    """Return what a request at ``time`` does to a job with ``state``.

    A job that waits ends at once, unless ``has_begun``: it is a workflow, of which a task runs
    already. One that runs is being cancelled until its worker sends its end. A status that is the
    application's own counts as one of a job that runs.

    >>> cancel_step({"status": "queued", "attempt": 0}, "t")
    CancelStep(type='job_cancelled', state={'status': 'cancelled', 'attempt': 0, 'ended_at': 't'}, \
attempt=0)
    >>> cancel_step({"status": "running", "attempt": 2}, "t").state
    {'status': 'cancelling', 'attempt': 2}
    >>> cancel_step({"status": "queued", "attempt": 0}, "t", has_begun=True).type
    'job_cancelling'
    >>> cancel_step({"status": "completed"}, "t").type is None
    True
    """
    known = dict(state) if isinstance(state, Mapping) else {}
    number = known.get("attempt")
    is_number = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    attempt = number if is_number else None
    status = known.get("status")
    if has_ended(known) or status == "cancelling":
        return CancelStep(None, known, attempt)
    if isinstance(status, str) and status in WAITING_STATUSES and not has_begun:
        ended = {**known, "status": "cancelled", "ended_at": time}
        return CancelStep("job_cancelled", ended, attempt)
    return CancelStep("job_cancelling", {**known, "status": "cancelling"}, attempt)
