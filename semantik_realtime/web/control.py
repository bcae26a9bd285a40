"""Cancel a job, and start one again, for a user who may watch it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.core.allowance import Allowance
from semantik_realtime.core.cancelling import CONTROL_TOPIC, CancelStep, cancel_step
from semantik_realtime.core.event import Outcome
from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.core.topic import job_topic, plain_id, split_topic
from semantik_realtime.core.workflow import is_running
from semantik_realtime.errors import BackendUnavailable, InvalidInput, RealtimeError
from semantik_realtime.hookspecs import NO_OPINION, Snapshot
from semantik_realtime.runtime import Runtime
from semantik_realtime.urls import mask_text
from semantik_realtime.web.access import Access
from semantik_realtime.web.host_hooks import ask_host
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.hub.permission import Permission
from semantik_realtime.web.job_ends import stored_state
from semantik_realtime.web.reads import Busy

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Requests that a process serves at the same time; each may wait for a broker."""
OF_USER = 4
"""The same of one user."""
BURST, PER_SECOND = 20.0, 1.0
"""How many requests a user may send at once to one process, and then a second."""
MAX_USERS = 10_000
"""Users whose requests are counted; of more, those that were idle longest are forgotten."""
TRIES = 3
"""How often a job is read again because an attempt has begun or ended meanwhile."""


class ControlError(RealtimeError):
    """A request that has no effect, with the status of the answer and a sentence for the client."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class JobControl:
    """Cancels jobs and starts them again, by the hooks of `semantik_realtime.job_control`."""

    def __init__(self, runtime: Runtime, access: Access, hub: Hub) -> None:
        self._runtime = runtime
        self._access = access
        self._hub = hub
        self._limits = RequestLimits()
        # The hooks that no plugin has, as logged.
        self._missing: set[str] = set()

    async def cancel(self, user: str, topic: str, permission: Permission) -> str:
        """Cancel the job of ``topic``; return its status afterwards. Idempotent.

        ``cancelled``: it was waiting, and has ended. ``cancelling``: a task runs; its worker sends
        the end, which is another one if the task completes all the same.

        Raises:
            ControlError: nothing was cancelled.
            Busy: too many requests.
            BackendError: the backend, the host or the broker does not answer. The job may be
                cancelled all the same.
        """
        with self._limits.place(user):
            await self._check_may("may_cancel", user, topic, permission)
            return await self._cancel(user, topic, permission.epoch)

    async def _cancel(self, user: str, topic: str, epoch: str) -> str:
        _, job = split_topic(topic)
        is_told = False
        for _ in range(TRIES):
            state, snapshot = await self._read(user, topic, epoch)
            # The state of a workflow follows those of its tasks.
            has_begun = "workflow" in state and is_running(_states_of(snapshot), job)
            step = cancel_step(state, now_text(), has_begun=has_begun)
            status = str(step.state.get("status"))
            if has_ended(state):
                if status == "cancelled":
                    return status
                raise ControlError(409, "ended", f"the job has ended: {status}")
            if not is_told:
                # Before the event: a page must not show what could not be done.
                await self._tell(job, state, is_running=step.type != "job_cancelled")
                is_told = True
                if step.type is not None:
                    # Otherwise the workers' processes have the request already.
                    await self._runtime.publish(CONTROL_TOPIC, "job_cancelling", key=job)
            if step.type is None or await self._append(topic, step):
                logger.info("control: cancelled topic=%s status=%s", topic, status)
                return status
        return "cancelling"

    async def _tell(self, job: str, state: dict[str, Any], *, is_running: bool) -> None:
        """Tell what runs the job."""
        name = state.get("name")
        await self._ask(
            "cancel",
            "cannot_cancel",
            "this job cannot be cancelled",
            job=job,
            name=name if isinstance(name, str) else None,
            is_running=is_running,
            terminate=self._runtime.settings.cancel_signal,
        )

    async def _append(self, topic: str, step: CancelStep) -> bool:
        """Append the event. Return False if the job must be read again: it has moved on."""
        assert step.type is not None
        data = {"how": "requested"}
        try:
            receipt = await self._runtime.publish(
                topic, step.type, state=step.state, data=data, attempt=step.attempt
            )
        except InvalidInput:
            # A state that no reader can read, from another writer.
            status = {"status": step.state["status"]}
            receipt = await self._runtime.publish(topic, step.type, state=status, data=data)
        return receipt.outcome not in (Outcome.STALE, Outcome.CLOSED)

    async def retry(self, user: str, topic: str, permission: Permission) -> str:
        """Start the job of ``topic``, which has ended, again; return the id of the job to watch.

        Raises:
            ControlError, Busy, BackendError: as `cancel`.
        """
        with self._limits.place(user):
            await self._check_may("may_retry", user, topic, permission)
            _, job = split_topic(topic)
            state, _ = await self._read(user, topic, permission.epoch)
            if not has_ended(state):
                raise ControlError(409, "not_ended", "the job has not ended")
            started = await self._ask(
                "retry", "cannot_retry", "this job cannot be started again", job=job, user=user
            )
            try:
                watched = plain_id(started)
                job_topic(watched)
            except InvalidInput as error:
                raise BackendUnavailable(f"the host's retry returned no id: {error}") from error
            logger.info("control: retried topic=%s as=%s", topic, job_topic(watched))
            return watched

    async def _check_may(self, hook: str, user: str, topic: str, permission: Permission) -> None:
        if not await self._access.may(hook, user, topic, permission.owner):
            verb = hook.removeprefix("may_")
            raise ControlError(403, "forbidden", f"you may not {verb} this job")

    async def _ask(self, hook: str, refused_code: str, refused: str, **arguments: Any) -> Any:
        answer = await ask_host(self._runtime.plugins, hook, **arguments)
        if answer is None or answer is NO_OPINION:
            if hook not in self._missing:
                self._missing.add(hook)
                logger.warning(
                    "control: no plugin can %s a job: give a hook `%s`, or for cancel import your "
                    "Celery application in the web server (logged once)",
                    hook,
                    hook,
                )
            raise ControlError(501, "not_implemented", f"this server cannot {hook} jobs")
        if answer is False:
            raise ControlError(409, refused_code, refused)
        return answer

    async def _read(self, user: str, topic: str, epoch: str) -> tuple[dict[str, Any], Snapshot]:
        """Return the job's own state, and all that was read.

        Raises:
            ControlError: the backend does not know the job, or its log has begun again after
                the user was authorized for ``epoch``: its owner may be another.
        """
        _, job = split_topic(topic)
        async with self._hub.reads.request_turn(user):
            snapshot = await self._hub.read(topic)
        encoded = snapshot.states.get(job)
        if encoded is None or snapshot.cursor is None or snapshot.cursor.epoch != epoch:
            raise ControlError(404, "not_found", "no such job")
        try:
            state = msgspec.json.decode(encoded).get("state")
        except (msgspec.DecodeError, AttributeError) as error:
            logger.warning("control: state not read topic=%s %s", topic, mask_text(str(error)))
            state = None
        return state if isinstance(state, dict) else {}, snapshot


def _states_of(snapshot: Snapshot) -> dict[str, Any]:
    return {key: stored_state(snapshot, key)[0] for key in snapshot.states}


class RequestLimits:
    """How many requests users have at once, and how fast they send further ones. For one loop."""

    def __init__(self) -> None:
        # How many requests run, by user.
        self._running: Counter[str] = Counter()
        # What each user may send, the one that was idle longest first. At most `MAX_USERS`.
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()

    @contextlib.contextmanager
    def place(self, user: str) -> Iterator[None]:
        """Have a place during the block.

        Raises:
            Busy: the user has too many or sends too many, or all have too many.
        """
        now = time.monotonic()
        allowance = self._allowances.pop(user, None) or Allowance(BURST, PER_SECOND, now)
        self._allowances[user] = allowance
        if len(self._allowances) > MAX_USERS:
            self._allowances.popitem(last=False)
        if self._running[user] >= OF_USER or not allowance.try_spend(1, now):
            raise Busy(is_user=True)
        if self._running.total() >= AT_ONCE:
            raise Busy(is_user=False)
        self._running[user] += 1
        try:
            yield
        finally:
            self._running[user] -= 1
            if not self._running[user]:
                del self._running[user]
