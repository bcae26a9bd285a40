"""The leases of worker processes: how long they last, and what is kept of each running job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

MAX_RECORD_BYTES = 4096
"""Largest `HeldJob`, encoded. A longer one loses its further topics."""
FOLLOWED = "~"
"""Before the id of a workflow that a process holds because it follows it: it may run a task with
the same id."""
_OUTCOME_SECONDS = (2.0, 5.0)
_MIN_LOOK_SECONDS = 0.5


class LeaseTimes(NamedTuple):
    """The durations that follow from the setting ``lease_seconds``, all in seconds.

    They add up to less than the setting, from 7 s on, so a job is lost within
    it: the lease lasts, a server looks, and asks for the outcome.
    """

    held: float
    """How long a process is believed to live after it has renewed its lease."""
    renew: float
    """Between two renewals: two of them may fail."""
    look: float
    """Between two looks of a web server for leases that are over."""
    outcome: float
    """Deadline of the question how a job ended."""

    @classmethod
    def of(cls, lease_seconds: float) -> LeaseTimes:
        """Return the durations for a setting.

        >>> LeaseTimes.of(30)
        LeaseTimes(held=18.0, renew=6.0, look=3.0, outcome=4.5)
        """
        least, most = _OUTCOME_SECONDS
        return cls(
            held=0.6 * lease_seconds,
            renew=0.2 * lease_seconds,
            look=max(_MIN_LOOK_SECONDS, 0.1 * lease_seconds),
            outcome=min(max(least, 0.15 * lease_seconds), most),
        )


class HeldJob(msgspec.Struct, frozen=True, omit_defaults=True, repr_omit_defaults=True):
    """What a web server must know of a job to end it in place of its process."""

    name: str | None = None
    owner: str | None = None
    topics: Sequence[str] = ()
    """Further topics that get the job's states, beside the owner's feed."""
    queued_at: str | None = None
    expected: int = 1
    """The number that the task's message gives the attempt; the backend may give a higher one."""
    workflow: str | None = None
    """The job whose member it is, and whose topic has its events; None: it has its own."""
    is_whole: bool = False
    """Whether the process does not run it, but would publish the end of ``workflow``."""

    def encode(self) -> bytes:
        """Return the record, with at most `MAX_RECORD_BYTES`.

        >>> HeldJob.decode(HeldJob("app.index", "7").encode())
        HeldJob(name='app.index', owner='7')
        """
        record = _encode(self)
        if len(record) > MAX_RECORD_BYTES:
            name = None if self.name is None else self.name[:200]
            record = _encode(msgspec.structs.replace(self, name=name, topics=()))
        return record

    @classmethod
    def decode(cls, record: bytes) -> HeldJob:
        """Read a record. One that cannot be read, of another version, is empty.

        >>> HeldJob.decode(b"rubbish")
        HeldJob()
        """
        try:
            return _decode(record)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return cls()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(HeldJob).decode
