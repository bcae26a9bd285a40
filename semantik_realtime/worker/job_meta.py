"""What a task's message states about its job."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from semantik_realtime.core.leases import HeldJob
from semantik_realtime.core.topic import job_topic
from semantik_realtime.core.workflow import key_of_member
from semantik_realtime.worker.members import Member


class JobMeta(msgspec.Struct, frozen=True):
    """What a task's message states about the job.

    ``topics`` get the job's states too, beside the owner's feed.
    """

    id: str
    """Celery's id of the task."""
    name: str | None = None
    owner: str | None = None
    topics: Sequence[str] = ()
    queued_at: str | None = None
    due_at: float | None = None
    """When the task is to start (its ETA), in seconds since 1970; None: as soon as possible."""
    is_redelivered: bool = False
    """Whether the broker says that it has delivered the task's message before."""
    member: Member | None = None
    """Its place in a workflow, whose topic gets its events; None: it has a topic of its own."""

    @property
    def key(self) -> str:
        """The key of the job's states in its topic, and the id by which the fence knows it."""
        return self.id if self.member is None else key_of_member(self.id, self.member.workflow)

    @property
    def topic(self) -> str:
        """The topic of the job's events.

        Raises:
            TopicError: the id cannot be the name of a topic.
        """
        return job_topic(self.id if self.member is None else self.member.workflow)

    def held(self, expected: int) -> bytes:
        """Return the record by which a server ends the attempt ``expected`` of a dead process."""
        return HeldJob(
            name=self.name,
            owner=self.owner,
            topics=self.topics,
            queued_at=self.queued_at,
            expected=expected,
            workflow=None if self.member is None else self.member.workflow,
        ).encode()
