"""The shape of what an application states: its data, its states, and the states of a job.

Readers of every wire read these members, so a value of another shape is refused
where it is published. Further members are the application's own, of any shape.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from semantik_realtime.core.lifecycle import STATUS_OF_TYPE
from semantik_realtime.errors import EventError

State = Mapping[str, Any] | msgspec.UnsetType | None
_Rule = tuple[str, Callable[[object], bool]]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_attempt(value: object) -> bool:
    # JavaScript and Lua have no larger integers.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


_TEXT: _Rule = ("a text", lambda value: isinstance(value, str))
_NUMBER: _Rule = ("a number", _is_number)
_MAPPING: _Rule = ("a mapping with texts as keys", _is_mapping)
_ATTEMPT: _Rule = ("an integer from 0", _is_attempt)
_MEMBERS: Mapping[str, _Rule] = {
    "status": _TEXT,
    "attempt": _ATTEMPT,
    "progress": _MAPPING,
    "message": _TEXT,
    "fields": _MAPPING,
    "error": _MAPPING,
    "name": _TEXT,
    "queued_at": _TEXT,
    "started_at": _TEXT,
    "ended_at": _TEXT,
    "eta": _TEXT,
    "worker": _TEXT,
}
"""The members of a job's state that readers know (docs/protocol.md). None counts as absent."""
_INNER: Mapping[str, Mapping[str, _Rule]] = {
    "progress": {"current": _NUMBER, "total": _NUMBER, "unit": _TEXT, "rate": _NUMBER},
    "error": {"type": _TEXT, "message": _TEXT},
}


def check_mapping(name: str, value: object) -> None:
    """Check that ``value`` is a mapping whose keys are texts; ``name`` is for the message.

    >>> check_mapping("data", {"file": "report.pdf"})
    >>> check_mapping("data", "report.pdf")
    Traceback (most recent call last):
    semantik_realtime.errors.EventError: data is a mapping with texts as keys, not 'report.pdf'

    Raises:
        EventError: it is not.
    """
    _check(name, value, _MAPPING)


def check_attempt(value: object) -> None:
    """Check that ``value`` is the number of an attempt.

    Raises:
        EventError: it is not.
    """
    _check("attempt", value, _ATTEMPT)


def check_job_state(state: Mapping[str, Any]) -> None:
    """Check the members of a job's state that readers know.

    >>> check_job_state({"status": "running", "attempt": 1, "colour": ["red"]})
    >>> check_job_state({"attempt": "1"})
    Traceback (most recent call last):
    semantik_realtime.errors.EventError: state.attempt is an integer from 0, not '1'
    >>> check_job_state({"statuss": "running"})
    Traceback (most recent call last):
    semantik_realtime.errors.EventError: state has no member of a job, but 'statuss': is 'status' \
meant?

    Raises:
        EventError: a member has another shape, or the state has no known member and one whose
            name is nearly that of a known one.
    """
    for name, rule in _MEMBERS.items():
        value = state.get(name)
        if value is None:
            continue
        _check(f"state.{name}", value, rule)
        for inner, inner_rule in _INNER.get(name, {}).items():
            if value.get(inner) is not None:
                _check(f"state.{name}.{inner}", value[inner], inner_rule)
    if state.keys().isdisjoint(_MEMBERS):
        for name, meant in near_misses(state).items():
            raise EventError(f"state has no member of a job, but {name!r}: is {meant!r} meant?")


def near_misses(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the members that may be misspelt, each with the known name that it resembles.

    A misspelt status is reported as the member ``status=…``.

    >>> near_misses({"status": "complete", "progres": {}, "colour": "red"})
    {'progres': 'progress', 'status=complete': 'status=completed'}
    """
    known = _MEMBERS.keys() - state.keys()
    missed = {
        name: meant
        for name in state
        if name not in _MEMBERS
        for meant in difflib.get_close_matches(name, known, 1, 0.8)
    }
    status, statuses = state.get("status"), set(STATUS_OF_TYPE.values())
    if isinstance(status, str) and status not in statuses:
        for meant in difflib.get_close_matches(status, statuses, 1, 0.85):
            missed[f"status={status}"] = f"status={meant}"
    return missed


def complete_state(type: str, state: State) -> State:
    """Return the state of a job that an event of ``type`` sets.

    The status follows from a type of a job's life. Without a state it is the
    whole state, because every event has the whole state.

    >>> complete_state("job_failed", {"attempt": 2})
    {'status': 'failed', 'attempt': 2}
    >>> complete_state("job_failed", msgspec.UNSET)
    {'status': 'failed'}
    >>> complete_state("job_failed", {"status": "running"})
    Traceback (most recent call last):
    semantik_realtime.errors.EventError: job_failed sets the status 'failed', but state.status is \
'running'

    Raises:
        EventError: the state contradicts the type.
    """
    status = STATUS_OF_TYPE.get(type)
    if status is None:
        return state
    if state is None:
        raise EventError(f"{type} sets a state, but state is None; delete() removes a job")
    given = {} if isinstance(state, msgspec.UnsetType) else state
    if given.get("status") not in (None, status):
        raise EventError(
            f"{type} sets the status {status!r}, but state.status is {given['status']!r}"
        )
    return {"status": status} | {k: v for k, v in given.items() if k != "status"}


def number_state(state: State, attempt: int) -> State:
    """Return the state of a job that an event of ``attempt`` sets.

    >>> number_state({"status": "running"}, 2)
    {'status': 'running', 'attempt': 2}

    Raises:
        EventError: the state names another attempt.
    """
    if state is None or isinstance(state, msgspec.UnsetType):
        return state
    if state.get("attempt") not in (None, attempt):
        raise EventError(f"the attempt is {attempt}, but state.attempt is {state['attempt']!r}")
    return {**state, "attempt": attempt}


def _check(name: str, value: object, rule: _Rule) -> None:
    expected, is_met = rule
    if not is_met(value):
        raise EventError(f"{name} is {expected}, not {repr(value)[:80]}")
