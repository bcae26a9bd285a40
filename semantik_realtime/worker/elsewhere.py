"""End a job whose task another process runs, or none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.stored_state import read_stored_state


def end_elsewhere(
    runtime: Runtime,
    meta: JobMeta,
    attempt: int,
    has_run: bool,
    type: str,
    *,
    error: dict[str, str] | None,
    data: Mapping[str, Any] | None,
) -> None:
    """End a job with its state from the backend, which only the other process knows.

    Args:
        runtime: sends the end.
        meta: the job.
        attempt: the one that ends, as far as the message knows.
        has_run: whether the attempt has begun.
        type: the event's.
        error: of the state.
        data: of the event.
    """
    known: dict[str, Any] = {"attempt": attempt}
    # None: the attempt that is newest when the backend appends the end.
    attempts: Sequence[int | None] = [None]
    if has_run:
        stored = read_stored_state(runtime, meta.topic, meta.key)
        # An application may have stored another shape.
        stored_attempt = stored.get("attempt")
        if not isinstance(stored_attempt, int):
            stored_attempt = 0
        expected = max(attempt, stored_attempt)
        # Not as the newest one: the feeds may not have got its job_started.
        attempts = [expected]
        if stored_attempt < expected:
            # The backend has not got this attempt's job_started, which may be in a spool file.
            # Send the end twice: with the expected attempt, then with the newest. If the
            # backend accepts the first, that attempt has ended and the second is refused.
            attempts = [expected, None]
        known |= stored | {"attempt": expected}
    if "ended_at" in known:
        return
    for number in attempts:
        Job(runtime, meta, number, known).end(type, error=error, data=data)
