"""Which worker process runs which jobs: what the hooks ``hold`` and ``overdue`` agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from semantik_realtime.core.limits import (
    MAX_HELD_JOBS_A_CALL,
    MAX_HELD_RECORD_BYTES,
    MAX_HOLDER_CHARACTERS,
)

HELD_KEEP_SECONDS = 7 * 86400.0
"""A holder that nobody asks for is forgotten so long after its deadline."""

_GIVEN = "given"


class Holding(msgspec.Struct, frozen=True):
    """The jobs of a worker process that did not renew its deadline.

    ``worker`` is the name under which the process held them. ``holder`` is the
    name under which they are held now, for whoever got them from ``overdue``: end
    each job, and then call ``hold(holder, {}, ended, seconds)`` with its id.
    ``jobs`` maps the id of each job to its record.
    """

    holder: str
    worker: str
    jobs: Mapping[str, bytes]


def given_name(holder: str, token: str) -> str:
    """Return the name under which jobs of ``holder`` are held after ``overdue`` has given them.

    The process that held them may come back, and its new jobs must not be
    removed by whoever ends the old ones. Jobs that were given before keep their
    name.

    >>> given_name("w1", "5f2a")
    'given:5f2a:w1'
    >>> given_name("given:5f2a:w1", "77d0")
    'given:5f2a:w1'
    """
    return holder if holder.startswith(f"{_GIVEN}:") else f"{_GIVEN}:{token}:{holder}"


def worker_of(holder: str) -> str:
    """Return the name under which the process held its jobs.

    >>> worker_of("given:5f2a:w1"), worker_of("w1")
    ('w1', 'w1')
    """
    return holder.split(":", 2)[2] if holder.startswith(f"{_GIVEN}:") else holder


def check_hold(holder: str, jobs: Mapping[str, bytes], ended: Sequence[str]) -> None:
    """Check what is passed to the hook ``hold``.

    Raises:
        ValueError: a name, a record or the number of jobs is out of its bounds.
    """
    if not 1 <= len(worker_of(holder)) <= MAX_HOLDER_CHARACTERS:
        raise ValueError(f"a holder's name has 1 to {MAX_HOLDER_CHARACTERS} characters")
    for what, count in (("held", len(jobs)), ("ended", len(ended))):
        if count > MAX_HELD_JOBS_A_CALL:
            raise ValueError(f"{count} jobs {what} in one call; at most {MAX_HELD_JOBS_A_CALL}")
    for job, record in jobs.items():
        if len(record) > MAX_HELD_RECORD_BYTES:
            raise ValueError(
                f"the record of job {job!r} has {len(record)} bytes; "
                f"at most {MAX_HELD_RECORD_BYTES}"
            )
