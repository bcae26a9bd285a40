"""What a task's message states about the job."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from semantik_realtime.core.leases import HeldJob


class JobMeta(msgspec.Struct, frozen=True):
    """What a task's message states about the job.

    ``topics`` get the job's states too, beside the owner's feed.
    """

    id: str
    name: str | None = None
    owner: str | None = None
    topics: Sequence[str] = ()
    queued_at: str | None = None
    eta: str | None = None
    """Before which no worker begins it."""

    def held(self, expected: int) -> bytes:
        """Return the record by which a server ends the attempt ``expected`` of a dead process."""
        return HeldJob(self.name, self.owner, self.topics, self.queued_at, expected).encode()
