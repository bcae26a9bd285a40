"""Generated drafts and logs, and plain models of the rules."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from semantik_realtime.core import fence
from semantik_realtime.core.event import (
    Cursor,
    Draft,
    Event,
    StateChange,
    encode_body,
    link,
    with_offset,
)

TIME = "2026-11-23T08:00:00.000Z"
KEYS = ("a", "b", "c")

json_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | json_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_texts, inner, max_size=3),
    max_leaves=6,
)


def draft(
    key: str = "a",
    state: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET,
    *,
    topic: str = "job:1",
    type: str = "note",
    data: dict[str, Any] | None = None,
    terminal: bool = False,
    job: str | None = None,
    attempt: int | None = None,
) -> Draft:
    """Return a draft whose body and members agree."""
    change = StateChange.KEEP
    if state is not msgspec.UNSET:
        change = StateChange.DROP if state is None else StateChange.SET
    return Draft(
        topic=topic,
        type=type,
        key=key,
        body=encode_body(type, TIME, key, state=state, data=data, terminal=terminal),
        change=change,
        terminal=terminal,
        job=job,
        attempt=attempt,
    )


drafts = st.builds(
    draft,
    key=st.sampled_from(KEYS),
    # Small, because no rule depends on the members of a state, and thousands of logs are drawn.
    state=st.sampled_from([msgspec.UNSET, None, {"n": 1}, {"n": 2}, {"ä": "\u2028"}, {}]),
    data=st.sampled_from([None, {"n": 1}, {"n": 2}, {"text": "x" * 60}]),
    terminal=st.booleans(),
)


def log_of(
    drafts: Iterable[Draft], *, after: Cursor | None = None, holes: Sequence[int] = ()
) -> list[Event]:
    """Return the events of ``drafts``; ``holes`` are added to the steps between their offsets."""
    offset, chain = (after.offset, after.chain) if after else (0, 0)
    events = []
    for index, one in enumerate(drafts):
        offset += 1 + (holes[index] if index < len(holes) else 0)
        chain = link(chain, one.digest)
        events.append(Event(offset, chain, with_offset(one.body, offset)))
    return events


@st.composite
def logs(draw: st.DrawFn, *, min_size: int = 0, max_size: int = 25) -> list[Event]:
    """Logs, some with holes between their offsets."""
    entries = draw(st.lists(drafts, min_size=min_size, max_size=max_size))
    holes = draw(st.just([]) | st.lists(st.integers(0, 3), max_size=len(entries)))
    return log_of(entries, holes=holes)


def states_after(events: Iterable[Event]) -> dict[str, Any]:
    """Return the folded states, with plain dicts (R1)."""
    states: dict[str, Any] = {}
    for event in events:
        members = json.loads(event.json)
        if "state" in members:
            states[members["key"]] = members["state"]
    return {key: state for key, state in states.items() if state is not None}


def append_all(drafts: Iterable[Draft]) -> list[Draft]:
    """Return the drafts that an empty backend appends; the fence refuses the others."""
    attempts: dict[tuple[str, str], fence.AttemptState] = {}
    appended = []
    for one in drafts:
        if one.job is not None:
            place = (one.topic, one.job)
            verdict = fence.check_fence(
                attempts.get(place, fence.AttemptState()), one.attempt, one.terminal
            )
            if isinstance(verdict, fence.Refusal):
                continue
            attempts[place] = verdict
        appended.append(one)
    return appended
