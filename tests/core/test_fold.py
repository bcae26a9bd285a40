"""Events to states, and the rules of a reader beyond the vectors."""

import json

import msgspec
from histories import draft, log_of, logs, states_after
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.fold import View, fold, is_ahead
from semantik_realtime.core.lifecycle import END_STATUSES


def folded(*parts):
    states: dict[str, msgspec.Raw] = {}
    for events in parts:
        fold(states, [event.head() for event in events])
    return {key: json.loads(bytes(state)) for key, state in states.items()}


@given(logs())
def test_the_state_of_a_key_is_that_of_its_last_event(log):
    assert folded(log) == states_after(log)


@given(logs(), st.data())
def test_folding_in_parts_gives_the_same(log, data):
    cut = data.draw(st.integers(0, len(log)))
    assert folded(log[:cut], log[cut:]) == folded(log)


@given(logs())
def test_folding_twice_changes_nothing(log):
    assert folded(log, log) == folded(log)


def batch(events, prev, offset=None):
    return {
        "prev": prev,
        "offset": events[-1].offset if offset is None else offset,
        "cursor": "c",
        "events": [json.loads(event.json) for event in events],
    }


def snapshot(offset, states=None, events=()):
    return {
        "mode": "snapshot",
        "reason": "new",
        "offset": offset,
        "cursor": f"e.{offset}",
        "states": states or {},
        "events": [json.loads(event.json) for event in events],
    }


def test_before_the_first_sync_events_are_ignored_and_are_no_gap():
    view = View("job:1")
    assert view.batch(batch(log_of([draft("a", {"n": 1})]), prev=0)) == []
    assert (view.states, view.offset, view.cursor) == ({}, 0, None)


def test_a_replay_for_a_new_reader_is_a_gap_unless_it_begins_at_the_beginning():
    log = log_of([draft("a", {"n": 1}), draft("b", {"n": 2})])
    view = View("job:1")
    assert view.sync({"mode": "replay", **batch(log[1:], prev=1)}) is None
    assert view.sync({"mode": "replay", **batch(log, prev=0)}) == batch(log, prev=0)["events"]
    assert view.states == {"a": {"n": 1}, "b": {"n": 2}}


def test_a_replay_keeps_the_reason_of_the_last_snapshot():
    view = View("job:1")
    view.sync(snapshot(0))
    view.sync({"mode": "replay", **batch(log_of([draft()]), prev=0)})
    assert view.reason == "new"


def test_a_reader_that_lost_its_connection_ignores_events_until_a_sync():
    log = log_of([draft("a", {"n": n}) for n in range(3)])
    view = View("job:1")
    view.sync(snapshot(1, {"a": {"n": 0}}))
    view.interrupt()
    assert view.batch(batch(log[1:2], prev=1)) == []
    assert view.sync({"mode": "replay", **batch(log[1:], prev=1)}) == batch(log[1:], 1)["events"]
    assert view.states == {"a": {"n": 2}}


def test_the_states_of_a_snapshots_frame_are_not_changed():
    frame = snapshot(0, {"a": {"n": 0}})
    view = View("job:1")
    view.sync(frame)
    view.batch(batch(log_of([draft("a", {"n": 1}), draft("b", {})]), prev=0))
    assert frame["states"] == {"a": {"n": 0}}


job_states = st.fixed_dictionaries(
    {
        "status": st.sampled_from(
            ["queued", "running", "retrying", "cancelling", *sorted(END_STATUSES)]
        )
    },
    optional={
        "attempt": st.sampled_from([0, 1, 1, 2, None, "1", True]),
        "progress": st.sampled_from([None, {}, {"current": None}, {"current": "3"}])
        | st.builds(lambda current: {"current": current}, st.integers(0, 4)),
    },
)


@given(job_states, job_states)
def test_of_two_states_of_a_job_at_most_one_is_ahead(one, other):
    assert not (is_ahead(one, other) and is_ahead(other, one))


@given(job_states | st.none(), st.lists(job_states))
def test_provisional_states_set_no_key_back_and_change_no_folded_state(folded, updates):
    view = View("job:1")
    view.sync(snapshot(7, {"a": folded} if folded else {}))
    for state in updates:
        before = view.states.get("a")
        is_accepted = view.provisional({"a": state})
        after = view.states["a"]
        assert after == (state if is_accepted else before)
        assert before is None or not is_ahead(before, after)
    assert view.folded == ({"a": folded} if folded else {})
    assert (view.offset, view.cursor, view.synced) == (7, "e.7", True)


@given(job_states, st.lists(job_states), job_states)
def test_after_restored_the_overlay_is_shown_only_while_the_log_is_behind(known, updates, state):
    view = View("job:1")
    view.sync(snapshot(1, {"a": known}))
    for one in updates:
        view.provisional({"a": one, "unknown to the log": one})
    view.restored()
    assert set(view.overlay) <= {"a"}
    for folded in (known, state):
        if view.overlay:
            assert folded["status"] not in END_STATUSES
            assert is_ahead(view.overlay["a"], folded)
        else:
            assert view.states == {"a": folded}
        view.batch(batch(log_of([draft("a", state)], after=Cursor("e", 1, 0)), prev=1))


@st.composite
def lives(draw):
    """The states of one job, from the queue to its end, through some attempts."""
    states = [{"status": "queued", "attempt": 0}]
    attempts = draw(st.integers(1, 3))
    for attempt in range(1, attempts + 1):
        for current in range(draw(st.integers(1, 5))):
            progress = {"current": current}
            states.append({"status": "running", "attempt": attempt, "progress": progress})
        last = states[-1] | {"status": "retrying"}
        if attempt == attempts:
            last["status"] = draw(st.sampled_from(sorted(END_STATUSES)))
        states.append(last)
    return states


@given(
    lives(),
    st.lists(
        st.tuples(st.sampled_from(["record", "restored", "events", "replay"]), st.integers(0, 20))
    ),
)
def test_a_true_record_never_sets_a_job_back_however_late_the_log_is(life, steps):
    log = log_of([draft("a", state) for state in life])
    view = View("job:1")
    view.sync(snapshot(1, {"a": life[0]}))
    for what, number in [*steps, ("replay", len(log))]:
        before = view.states["a"]
        late = log[view.offset : number]
        if what == "record":
            view.provisional({"a": life[number % len(life)]})
        elif what == "restored":
            view.restored()
        elif late:
            part = {"mode": "replay", **batch(late, prev=view.offset)}
            (view.sync if what == "replay" else view.batch)(part)
        assert not is_ahead(before, view.states["a"])
    assert view.states == {"a": life[-1]}
    assert not view.overlay
