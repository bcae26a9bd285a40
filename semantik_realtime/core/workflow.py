"""When a workflow has ended, and what is left to count: from the states of its topic. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from semantik_realtime.core.lifecycle import END_TYPES, STATUS_OF_TYPE, has_ended
from semantik_realtime.core.summary import RUNNING_STATUSES, Count, milliseconds_of
from semantik_realtime.core.tally import OUTCOME_OF_STATUS

KEPT_MEMBERS = 200
"""In a workflow of more members, a member that has completed is counted and its key removed."""
KEPT_CHILDREN = 20
"""The same for the members that one process has published from within members."""
KEPT_FAILURES = 20
"""Keys of failed members that one process keeps in a workflow of so many."""
KEPT_TALLIES = 32
"""Tallies of processes in a topic. Of twice as many, the oldest are united in another one."""
UNCOUNTED_SECONDS = 10.0
"""A key that its process has not counted for so long is counted by another one."""
LAST, ALL, OPEN = "last", "all", "open"
"""What ends a workflow: its last member; the last of several members; the application, or the
member that it has flagged."""
LAST_SUFFIX = ":last"
"""Ends the key of a member whose task has the id of the workflow, which is the key of the whole."""
TALLY_PREFIX = "~"
"""Of the keys whose state is a tally."""


class Ending(msgspec.Struct, frozen=True):
    """How a workflow ended: an event's type, and an error that names the member."""

    type: str
    error: Mapping[str, Any] | None = None


def key_of_member(task: str, workflow: str | None) -> str:
    """Return the key of a task in the topic of the workflow.

    >>> key_of_member("a", "w"), key_of_member("w", "w"), key_of_member("w", None)
    ('a', 'w:last', 'w')
    """
    return task + LAST_SUFFIX if task == workflow else task


def task_of_member(key: str, workflow: str | None) -> str:
    """Return the id of the task that has ``key`` in the topic of the workflow.

    >>> task_of_member("a", "w"), task_of_member("w:last", "w"), task_of_member("w:last", None)
    ('a', 'w', 'w:last')
    """
    return workflow if workflow is not None and key == workflow + LAST_SUFFIX else key


def whole_id(workflow: str) -> str:
    """Return the id that revokes all members of a workflow, and no task by itself.

    >>> whole_id("w")
    '~w'
    """
    return f"~{workflow}"


def is_counted(number: int, giver: str, total: int, max_keys: int) -> bool:
    """Return True if a member gets no key that stays: there are too many of them.

    Args:
        number: the member's number.
        giver: who numbered it; empty for a member that was submitted.
        total: how many were submitted with it.
        max_keys: keys that a topic may have.

    >>> is_counted(0, "", 201, 1000), is_counted(199, "", 200, 1000), is_counted(20, "k1", 0, 1000)
    (True, False, True)
    """
    if giver == "":
        return max(total, number + 1) > min(KEPT_MEMBERS, max_keys // 4)
    return number >= min(KEPT_CHILDREN, max_keys // 40)


def end_of(states: Mapping[str, object], job: str) -> Ending | None:
    """Return how the workflow ``job`` has ended; None: it goes on, or its end is in the log.

    - Whatever ends it: when a flagged member has ended, the workflow ends with its status.
    - `LAST`: when a member that was submitted did not succeed, for then the last one will not run.
    - `ALL`: when every member that was submitted has ended, or will not run.

    >>> member = {"status": "completed", "member": {"n": 0}}
    >>> end_of({"1": {"workflow": {"total": 1, "ends": "all"}}, "a": member}, "1")
    Ending(type='job_completed', error=None)
    """
    count = Count(states, job)
    if has_ended(count.own):
        return None
    for _, _, key, state in count.members:
        if state["member"].get("ends") is True and has_ended(state):
            error = None if state["status"] == "completed" else _error_of(key, state)
            return Ending(_end_type(state["status"]), error)
    ends, total = count.flow.get("ends"), count.size("")
    parts = count.parts("")
    unsuccessful = parts["failed"] | parts["lost"] | parts["cancelled"]
    if ends == LAST and unsuccessful:
        return _failure(count, bool(parts["failed"] | parts["lost"]))
    if ends == ALL:
        ended = parts["done"] | parts["skipped"] | unsuccessful
        if ended.bit_count() >= total > 0:
            if not unsuccessful | parts["skipped"]:
                return Ending("job_completed")
            return _failure(count, bool(parts["failed"] | parts["lost"]))
    return None


def is_running(states: Mapping[str, object], job: str) -> bool:
    """Return True if the workflow ``job`` has not ended, and the state of a member says that it
    runs: in a worker that lives, or in one whose death is not known yet.

    >>> is_running({"a": {"status": "running", "member": {"n": 0}}}, "1")
    True
    >>> is_running({"a": {"status": "queued", "member": {"n": 0}}}, "1")
    False
    """
    count = Count(states, job)
    if has_ended(count.own):
        return False
    return any(state.get("status") in RUNNING_STATUSES for _, _, _, state in count.members)


def reopened(states: Mapping[str, object], job: str) -> dict[str, Any] | None:
    """Return the state with which a workflow goes on that was ended while it waited; None: it was
    not, or none of its tasks had begun, or it would end in the same way again.

    It was cancelled, or called lost, in the moment in which a worker began its first task. That
    end is one of the attempt 0, so the fence lets the next one through.

    >>> own = {"status": "cancelled", "attempt": 0, "workflow": {"total": 2, "ends": "all"}}
    >>> running = {"status": "running", "member": {"n": 0}}
    >>> reopened({"1": own, "a": running}, "1")["status"]
    'cancelling'
    >>> reopened({"1": own, "a": running | {"status": "cancelled"}}, "1")
    """
    count = Count(states, job)
    own = count.own
    if own.get("attempt") != 0 or own.get("status") not in ("cancelled", "lost"):
        return None
    if count.flow.get("ends") not in (LAST, ALL):
        # What ends it may never come: the application that ends it has seen its end.
        return None
    parts = count.parts("")
    if not any(parts[part] for part in ("running", "done", "failed", "lost")):
        return None
    state = {name: own[name] for name in own if name not in ("ended_at", "error")}
    state |= {"status": "cancelling" if own["status"] == "cancelled" else "running", "attempt": 1}
    ending = end_of({**states, job: state}, job)
    if ending is not None and STATUS_OF_TYPE[ending.type] == own["status"]:
        return None
    return state


def progress_of(states: Mapping[str, object], job: str, now: str) -> dict[str, Any] | None:
    """Return the state of a workflow whose members have begun.

    ``now`` is the time as events have it. None: the state is as it should be, or not ours: the
    application has published one of its own, which has no member ``workflow``.
    """
    count = Count(states, job)
    if count.flow.get("ends") not in (LAST, ALL, OPEN) or has_ended(count.own):
        return None
    ended = total = 0
    for giver in count.tally.givers() | {""}:
        parts = count.parts(giver)
        total += count.size(giver)
        ended += sum(numbers.bit_count() for part, numbers in parts.items() if part != "running")
    began = [state.get("started_at") for _, _, _, state in count.members]
    if not ended and not any(began):
        return None
    starts = [time for time in began if milliseconds_of(time) is not None]
    attempt = count.own.get("attempt")
    state = dict(count.own) | {
        # What somebody asked for stays until it is done.
        "status": "cancelling" if count.own.get("status") == "cancelling" else "running",
        "attempt": attempt if isinstance(attempt, int) and attempt > 0 else 1,
        "started_at": count.own.get("started_at") or min([*starts, now], key=str),
        "progress": {"current": ended, "total": total, "unit": "tasks"},
    }
    return state if state != count.own else None


def uncounted(
    states: Mapping[str, object], job: str, max_keys: int, now_ms: int
) -> list[tuple[str, int, str, Mapping[str, Any]]]:
    """Return the completed members that the process that ran them should have counted long ago:
    it was killed. Giver, number, key and state.
    """
    count = Count(states, job)
    total = count.flow.get("total")
    found = []
    for giver, number, key, state in count.members:
        if state.get("status") != "completed" or state["member"].get("ends") is True:
            continue
        if is_counted(number, giver, total if isinstance(total, int) else 0, max_keys):
            ended = milliseconds_of(state.get("ended_at"))
            if ended is None or now_ms - ended > UNCOUNTED_SECONDS * 1000:
                found.append((giver, number, key, state))
    return found


def tallies_to_unite(states: Mapping[str, object], own: str) -> list[str]:
    """Return the keys of the tallies that another process shall unite with its ``own``: the
    oldest, if there are too many.

    A process that still counts sends its tally again, which contains what it sent before.
    """
    keys = [
        (str(state.get("sent_at", "")), key)
        for key, state in states.items()
        if key.startswith(TALLY_PREFIX) and key != own and isinstance(state, Mapping)
    ]
    if len(keys) <= 2 * KEPT_TALLIES:
        return []
    return [key for _, key in sorted(keys)[:-KEPT_TALLIES]]


def _failure(count: Count, has_failed: bool) -> Ending:
    """Return the end of a workflow by the member that did not succeed first."""
    wanted = ("failed", "lost") if has_failed else ("cancelled",)
    first = min(
        (member for member in count.members if member[3].get("status") in wanted),
        key=lambda member: str(member[3].get("ended_at", "")),
        default=None,
    )
    error = None if first is None else _error_of(first[2], first[3])
    return Ending("job_failed" if has_failed else "job_cancelled", error)


def _error_of(key: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the error of a member, and where the member is."""
    error = state.get("error")
    shown = dict(error) if isinstance(error, Mapping) else {"type": "", "message": ""}
    at, name = state["member"].get("at"), state.get("name")
    where = " · ".join(part for part in (at, name) if isinstance(part, str) and part)
    return shown | {"where": where, "key": key}


def _end_type(status: str) -> str:
    # A workflow is not lost: the worker that ran its member is.
    type = "job_failed" if OUTCOME_OF_STATUS[status] == "lost" else f"job_{status}"
    assert type in END_TYPES
    return type
