"""Compare the events of a test with what it expects, and show both. No I/O, no clock."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from semantik_realtime.core.lifecycle import END_TYPES, PROGRESS, STATUS_OF_TYPE
from semantik_realtime.core.topic import split_topic

Expected = str | tuple[str, Mapping[str, Any]]
"""The type of an event; or its type, and members that its data must have."""
MAX_DETAIL = 160
"""Characters of an event's members in a report."""
NUMEROUS_TYPES = (PROGRESS, "log")
"""Types whose number depends on time. They count only if the expectation names them."""


def countable(
    events: Sequence[Mapping[str, Any]], expected: Sequence[Expected]
) -> list[Mapping[str, Any]]:
    """Return the events that a comparison with ``expected`` looks at.

    Without `NUMEROUS_TYPES`, unless ``expected`` names one; then events of that
    type in a row count as one, the last.

    >>> events = [{"type": "job_started"}, {"type": "job_progress"}, {"type": "job_progress"}]
    >>> countable(events, ["job_started"])
    [{'type': 'job_started'}]
    >>> len(countable(events, ["job_started", "job_progress"]))
    2
    """
    named = {type_of(one) for one in expected}
    kept: list[Mapping[str, Any]] = []
    for event in events:
        is_numerous = event["type"] in NUMEROUS_TYPES
        if is_numerous and event["type"] not in named:
            continue
        if is_numerous and kept and kept[-1]["type"] == event["type"]:
            kept.pop()
        kept.append(event)
    return kept


def type_of(expected: Expected) -> str:
    """Return the type that an expectation names."""
    return expected if isinstance(expected, str) else expected[0]


def matches(event: Mapping[str, Any], expected: Expected) -> bool:
    """Return True if an event is as expected.

    >>> event = {"type": "file_completed", "data": {"file": "a.txt", "chunks": 3}}
    >>> matches(event, ("file_completed", {"file": "a.txt"})), matches(event, "job_failed")
    (True, False)
    """
    if event["type"] != type_of(expected):
        return False
    members = {} if isinstance(expected, str) else expected[1]
    data = event.get("data", {})
    return all(name in data and data[name] == value for name, value in members.items())


def has_diverged(events: Sequence[Mapping[str, Any]], expected: Sequence[Expected]) -> bool:
    """Return True if no further event can make ``events`` what is expected.

    >>> has_diverged([{"type": "job_started"}], ["job_started", "job_completed"])
    False
    >>> has_diverged([{"type": "job_started"}], ["job_queued"])
    True
    """
    if len(events) > len(expected):
        return True
    # Progress in a row counts as one event, the last: that one may still be replaced.
    settled = events[:-1] if events and events[-1]["type"] in NUMEROUS_TYPES else events
    return not all(matches(event, one) for event, one in zip(settled, expected, strict=False))


def is_over(events: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Return True if the last event of a job's life is an end. Those of its children do not count.

    >>> events = [{"type": "job_started", "key": "1"}, {"type": "job_failed", "key": "1"}]
    >>> is_over(events, "1"), is_over(events[::-1], "1"), is_over(events, "2")
    (True, False, False)
    """
    life = [e["type"] for e in events if e["type"] in STATUS_OF_TYPE and e["key"] == key]
    return bool(life) and life[-1] in END_TYPES


def compare(events: Sequence[Mapping[str, Any]], expected: Sequence[Expected]) -> str:
    """Return a diff, one event a line: ``-`` is expected and missing, ``+`` was not expected.

    >>> print(compare([{"type": "job_started"}, {"type": "job_failed"}], ["job_started"]))
      job_started
    + job_failed
    """
    wanted = [
        type_of(one) if isinstance(one, str) else f"{one[0]}  {_compact(one[1])}"
        for one in expected
    ]
    # An event that matches has the line of what it matches, so that only faults differ.
    left = list(range(len(expected)))
    happened = []
    for event in events:
        index = next((i for i in left if matches(event, expected[i])), None)
        if index is None:
            data = event.get("data")
            happened.append(event["type"] + (f"  {_compact(data)}" if data else ""))
        else:
            left.remove(index)
            happened.append(wanted[index])
    lines = difflib.ndiff(wanted, happened)
    return "\n".join(line.rstrip() for line in lines if not line.startswith("?"))


def describe(topic: str, events: Sequence[Mapping[str, Any]]) -> str:
    """Return a log as text: for each event its offset, time, type and what changed.

    >>> print(describe("job:1", []))
    job:1 has no events
    """
    if not events:
        return f"{topic} has no events"
    lines = [f"the events of {topic}:"]
    for event in events:
        state = event.get("state")
        parts = {
            name: state[name]
            for name in ("status", "attempt", "progress", "message", "fields", "error")
            if isinstance(state, Mapping) and name in state
        }
        if event.get("key", split_topic(topic)[1]) != split_topic(topic)[1]:
            # Of a feed's job, or of a member of a workflow.
            name = state.get("name", "") if isinstance(state, Mapping) else ""
            parts = {"key": f"{event['key']} {name}".strip(), **parts}
        if event.get("data"):
            parts["data"] = event["data"]
        time = str(event.get("time", ""))[11:23]
        detail = _compact(parts) if parts else ""
        lines.append(f"{event.get('offset', ''):>4}  {time}  {event['type']}  {detail}".rstrip())
    return "\n".join(lines)


def _compact(members: Mapping[str, Any]) -> str:
    text = "  ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value, default=repr)}"
        for name, value in members.items()
    )
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"
