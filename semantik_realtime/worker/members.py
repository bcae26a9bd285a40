"""Tasks that are members of a workflow: their places, and the tallies of those that have ended.

Their events go to the workflow's topic. In a workflow of many members those that have completed
are counted in a tally, and their keys are removed (docs/workflows.md).
"""

from __future__ import annotations

import itertools
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import msgspec

from semantik_realtime.clock import now_text
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.lifecycle import PROGRESS, STATUS_OF_TYPE
from semantik_realtime.core.tally import (
    MAX_MEMBERS,
    OUTCOME_OF_STATUS,
    Tally,
    number_of,
    numbers_of,
)
from semantik_realtime.core.topic import job_topic
from semantik_realtime.core.workflow import KEPT_FAILURES, TALLY_PREFIX, is_counted, whole_id
from semantik_realtime.forks import on_fork
from semantik_realtime.native_threads import make_rlock
from semantik_realtime.runtime import Runtime

TALLY_SECONDS = 0.25
"""How often a process sends the tally of a workflow."""
MAX_UNSENT = 100
"""Members that it counts before it sends the tally without waiting for its turn."""
MAX_WORKFLOWS = 1000
"""Workflows whose tallies a process keeps; for one that it has forgotten it begins another."""
PLACE_MEMBERS = ("n", "of", "at", "skips", "ends")
"""Members of a place that a state shows."""


class Member(msgspec.Struct, frozen=True):
    """The place of a task in a workflow."""

    workflow: str
    """The workflow's id."""
    place: Mapping[str, Any]
    """As the header has it."""

    @property
    def giver(self) -> str:
        """Who gave the number; empty: the member was submitted with the workflow."""
        return str(self.place.get("of", ""))

    @property
    def number(self) -> int:
        """The member's number."""
        return int(self.place["n"])

    @property
    def ends(self) -> bool:
        """Whether the workflow ends with this member."""
        return self.place.get("ends") is True

    @property
    def revoked_as(self) -> str:
        """The id that revokes all members. Celery's own of the workflow revokes its last task alone
        if that is the workflow's id.
        """
        return whole_id(self.workflow) if self.place.get("result") is True else self.workflow

    @property
    def is_awaited(self) -> bool:
        """Whether other members run only after this one."""
        return bool(self.place.get("skips"))

    def is_counted(self, runtime: Runtime) -> bool:
        """Return True if the member's key is removed when it has completed."""
        total = number_of(self.place.get("total")) or 0
        return is_counted(self.number, self.giver, total, runtime.settings.max_keys)

    def as_state(self) -> dict[str, Any]:
        """Return the member ``member`` of the task's state."""
        return {name: self.place[name] for name in PLACE_MEMBERS if name in self.place}


def is_place(place: object) -> bool:
    """Return True if the header of a message states a place."""
    return (
        isinstance(place, Mapping)
        and number_of(place.get("n")) is not None
        and isinstance(place.get("of", ""), str)
    )


def read_member(workflow: str, place: object, task_id: str) -> Member:
    """Return the place that a message's headers state. Without one, the task is a giver of its own:
    it was published by a process that does not number members.
    """
    if isinstance(place, Mapping) and is_place(place):
        return Member(workflow, dict(place))
    return Member(workflow, {"of": task_id, "n": 0})


class _WorkflowTally:
    """What this process has counted in one workflow, under a key of its own."""

    def __init__(self, runtime: Runtime, workflow: str, owner: str | None) -> None:
        self.giver = secrets.token_hex(4)
        """Under this name the process numbers the members that it publishes."""
        self.key = TALLY_PREFIX + secrets.token_hex(6)
        self.numbers = itertools.count()
        self._runtime = runtime
        self._topics = {job_topic(workflow): owner}
        # What any thread has counted since `send`: giver, number, outcome, skipped, and the key to
        # remove. Appended without a lock, because a time limit may interrupt a task's thread.
        self._counted: deque[tuple[str, int, str, int, str]] = deque()
        self._published = 0
        # Keys to remove that no member had: tallies that were united with this one.
        self._united: deque[tuple[str, object]] = deque()
        # Around everything below; taken by the emitter's thread, and when the process ends.
        self._lock = make_rlock()
        self._tally = Tally()
        self._kept_failures = 0

    def publish(self) -> tuple[str, int]:
        """Number a member that this process publishes."""
        number = next(self.numbers)
        self._published = max(self._published, number + 1)
        if is_counted(number, self.giver, 0, self._runtime.settings.max_keys):
            # It gets no key while it is queued, which would show that there is one more.
            self.send_soon()
        return self.giver, number

    def add(self, giver: str, number: int, outcome: str, skipped: int, key: str) -> None:
        """Count a member, and remove its key if it has completed."""
        self._counted.append((giver, number, outcome, skipped, key))
        if len(self._counted) >= MAX_UNSENT:
            # Not behind the drafts of many more members, whose keys would wait for it too.
            self.send()
        else:
            self.send_soon()

    def unite(self, key: str, tally: object) -> None:
        """Count what another process has counted, and remove the key of its tally."""
        self._united.append((key, tally))
        self.send_soon()

    def send_soon(self) -> None:
        """Have the emitter's thread call `send`."""
        self._runtime.emitter.throttle((self.key, "tally"), TALLY_SECONDS, self.send)

    def send(self) -> None:
        """Send the tally if it has changed, and then remove the keys that it counts."""
        with self._lock:
            removed = []
            has_news = self._published > self._tally.published.get(self.giver, 0)
            while self._counted:
                giver, number, outcome, skipped, key = self._counted.popleft()
                self._tally.add(giver, number, outcome, skipped)
                has_news = True
                if outcome != "done" and self._kept_failures < KEPT_FAILURES:
                    self._kept_failures += 1
                else:
                    removed.append(key)
            while self._united:
                key, tally = self._united.popleft()
                self._tally.merge(tally)
                removed.append(key)
                has_news = True
            if not has_news:
                return
            if self._published:
                self._tally.publish(self.giver, self._published)
            self._emit(self.key, {"tally": self._tally.as_state(), "sent_at": now_text()})
            for key in removed:
                self._emit(key, None)

    def _emit(self, key: str, state: Mapping[str, Any] | None) -> None:
        max_bytes = self._runtime.settings.max_event_bytes
        for draft in make_drafts(
            self._topics, PROGRESS, now_text(), key, state=state, max_bytes=max_bytes
        ):
            self._runtime.emitter.emit(draft)


class Tallies:
    """The tallies of this process, by workflow. For any thread."""

    def __init__(self) -> None:
        self._tallies: OrderedDict[str, _WorkflowTally] = OrderedDict()

    def number(self, runtime: Runtime, workflow: str, owner: str | None) -> dict[str, Any]:
        """Return the place of a member that this process publishes from within a member."""
        giver, number = self._of(runtime, workflow, owner).publish()
        if number >= MAX_MEMBERS - 1:
            # Begin again under another name.
            self._tallies.pop(workflow, None)
        return {"of": giver, "n": number}

    def count(
        self, runtime: Runtime, member: Member, owner: str | None, type: str, key: str
    ) -> None:
        """A member has ended with an event of ``type``, which the emitter has."""
        if not member.is_counted(runtime):
            return
        outcome = OUTCOME_OF_STATUS[STATUS_OF_TYPE[type]]
        if outcome == "done" and member.ends:
            # Its state says that the workflow has ended.
            return
        skipped = 0 if outcome == "done" else numbers_of(member.place.get("skips"))
        tally = self._of(runtime, member.workflow, owner)
        tally.add(member.giver, member.number, outcome, skipped, key)

    def of_workflow(self, runtime: Runtime, workflow: str, owner: str | None) -> _WorkflowTally:
        """Return the tally of ``workflow``, made now if there is none."""
        return self._of(runtime, workflow, owner)

    def send(self) -> None:
        """Send what is not sent yet: the process ends."""
        for tally in list(self._tallies.values()):
            tally.send()

    def clear(self) -> None:
        """Forget everything: it is the parent's."""
        self._tallies.clear()

    def _of(self, runtime: Runtime, workflow: str, owner: str | None) -> _WorkflowTally:
        tally = self._tallies.get(workflow)
        if tally is None:
            made = _WorkflowTally(runtime, workflow, owner)
            # Another thread may have made one meanwhile.
            tally = self._tallies.setdefault(workflow, made)
            while len(self._tallies) > MAX_WORKFLOWS:
                # What it has not sent yet is sent all the same: the emitter holds its `send`.
                self._tallies.popitem(last=False)
        return tally


tallies = Tallies()
"""Of this process."""
on_fork(after_in_child=tallies.clear)
