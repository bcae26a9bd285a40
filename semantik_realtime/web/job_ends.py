"""End jobs in place of the process that cannot: ask the host how they ended, and publish that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.core.drafts import make_drafts, owners_of
from semantik_realtime.core.event import Draft, Outcome
from semantik_realtime.core.leases import HeldJob, LeaseTimes
from semantik_realtime.core.lifecycle import END_STATUSES, STATUS_OF_TYPE
from semantik_realtime.core.lost import End, end_of
from semantik_realtime.core.topic import job_topic, user_topic
from semantik_realtime.core.workflow import end_of as workflow_end
from semantik_realtime.core.workflow import is_running, task_of_member
from semantik_realtime.errors import AccessError, BackendError, BackendUnavailable, InvalidInput
from semantik_realtime.hookspecs import NO_OPINION, Snapshot
from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text
from semantik_realtime.web.host_hooks import ask_host

logger = logging.getLogger(__name__)

ASK_AGAIN_SECONDS = 30.0
"""Pause of the questions after one that had no answer in time."""

State = Mapping[str, Any]


class JobEnds:
    """Ends jobs. For one loop.

    Args:
        runtime: its emitter sends the ends, and its plugins are asked (`HostSpec.outcome`).
    """

    def __init__(self, runtime: Runtime) -> None:
        self.counts: dict[str, int] = dict.fromkeys(sorted(END_STATUSES), 0)
        """How many jobs this process has ended, by their status."""
        self._runtime = runtime
        self._times = LeaseTimes.of(runtime.settings.lease_seconds)
        # The host is asked again from this monotonic time on.
        self._ask_at = 0.0

    async def end(
        self,
        job: str,
        state: State | None,
        attempt: int | None,
        record: HeldJob,
        *,
        why: str,
        reason: str,
    ) -> Outcome:
        """End ``attempt`` of a job (None: the newest), as the host says, or else as lost.

        Returns what became of the draft on the job's own topic. `Outcome.WAITING`: it is not
        known.

        Args:
            job: the job's id.
            state: its state in the log; None: it has none.
            attempt: the one that is to end.
            record: whose the job is, and who else gets its states.
            why: the message of the error of a lost job.
            reason: the ``data.reason`` of the event, for programs.
        """
        known = await self._ask(task_of_member(job, record.workflow))
        end = end_of(state, record, known, now_text(), why)
        topics = {job_topic(record.workflow or job): record.owner}
        if record.workflow is None:
            topics = _topics_of(job, record)
        drafts = self._drafts(topics, job, end, attempt, {"reason": reason})
        outcome = await self._send(drafts)
        if outcome is Outcome.APPENDED:
            self.counts[end.state["status"]] += 1
        return outcome

    def repeat_for_feeds(self, job: str, end: End, record: HeldJob) -> None:
        """Send the end of a job to the topics that get its states beside its own.

        The fence refuses it where it is known, and where the job has a newer attempt. The feeds
        of a member get the state of its workflow.
        """
        topics = {} if record.workflow is not None else _topics_of(job, record)
        topics.pop(job_topic(job), None)
        if topics:
            attempt = end.state["attempt"]
            for draft in self._drafts(topics, job, end, attempt, {"reason": "lease"}):
                self._runtime.emitter.emit(draft)

    async def end_workflow(self, record: HeldJob, snapshot: Snapshot) -> bool:
        """End the workflow of ``record`` if its members say so.

        Return False if that is to be tried again: it is not known whether the log has the end, or
        a member runs, which may be the last one, and of a worker that nobody else would look for.
        """
        if record.workflow is None:
            return True
        states = {key: stored_state(snapshot, key)[0] for key in snapshot.states}
        ending = workflow_end(states, record.workflow)
        if ending is None:
            return not is_running(states, record.workflow)
        outcome = {"status": STATUS_OF_TYPE[ending.type], "error": ending.error}
        end = end_of(states.get(record.workflow), record, outcome, now_text(), "")
        attempt = end.state["attempt"] = max(1, end.state["attempt"])
        topics = _topics_of(record.workflow, record)
        drafts = self._drafts(topics, record.workflow, end, attempt, {"reason": "lease"})
        return await self._send(drafts) is not Outcome.WAITING

    def _drafts(
        self,
        topics: Mapping[str, str | None],
        job: str,
        end: End,
        attempt: int | None,
        data: Mapping[str, Any],
    ) -> list[Draft]:
        return make_drafts(
            topics,
            end.type,
            now_text(),
            job,
            state=end.state,
            data=data,
            job=job,
            attempt=attempt,
            terminal=True,
            # The state was accepted before, and has grown only a little.
            max_bytes=2 * self._runtime.settings.max_event_bytes,
        )

    async def _send(self, drafts: Sequence[Draft]) -> Outcome:
        emitter = self._runtime.emitter
        receipt = emitter.emit_and_confirm(drafts[0])
        for draft in drafts[1:]:
            emitter.emit(draft)
        try:
            timeout = self._runtime.settings.timeout_seconds
            return (await asyncio.wait_for(asyncio.wrap_future(receipt), timeout)).outcome
        except (TimeoutError, BackendError):
            return Outcome.WAITING

    async def _ask(self, job: str) -> State | None:
        """Return how the host says that a job ended; None: it does not know, or not in time."""
        if time.monotonic() < self._ask_at:
            return None
        try:
            async with asyncio.timeout(self._times.outcome):
                answer = await ask_host(self._runtime.plugins, "outcome", job=job)
        except (TimeoutError, BackendUnavailable, AccessError) as error:
            if time.monotonic() >= self._ask_at:
                self._ask_at = time.monotonic() + ASK_AGAIN_SECONDS
                logger.warning(
                    "lost: outcome not known, the jobs count as lost job=%s error=%s",
                    job,
                    mask_text(repr(error)),
                )
            return None
        if answer is NO_OPINION or not isinstance(answer, Mapping):
            return None
        return self._runtime.words.translate(answer)


def _topics_of(job: str, record: HeldJob) -> dict[str, str | None]:
    feeds = [] if record.owner is None else [user_topic(record.owner)]
    return owners_of(job_topic(job), [*feeds, *record.topics], record.owner)


def stored_state(snapshot: Snapshot, key: str) -> tuple[State | None, str]:
    """Return the state of a key and the time of the event that set it; None: it has none."""
    if key not in snapshot.states:
        return None, ""
    try:
        event = msgspec.json.decode(snapshot.states[key])
        state, changed_at = event.get("state"), event.get("time")
    except (msgspec.DecodeError, AttributeError, UnicodeError, RecursionError):
        return None, ""
    if not isinstance(state, Mapping):
        return None, ""
    return state, changed_at if isinstance(changed_at, str) else ""


def topic_of(job: str) -> str | None:
    """Return the topic of a job; None if it can have none."""
    try:
        return job_topic(job)
    except InvalidInput:
        return None
