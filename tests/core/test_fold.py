"""Events to state, and what a reader makes of frames beyond the vectors."""

import json

import msgspec
from histories import draft, log_of, logs, states_after
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.fold import View, fold


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


def test_before_the_first_sync_nothing_is_taken_and_nothing_is_asked():
    view = View("job:1")
    assert view.batch(batch(log_of([draft("a", {"n": 1})]), prev=0)) == []
    assert (view.states, view.offset, view.cursor) == ({}, 0, None)


def test_a_replay_for_a_reader_that_knows_nothing_is_a_gap_unless_it_is_everything():
    log = log_of([draft("a", {"n": 1}), draft("b", {"n": 2})])
    view = View("job:1")
    assert view.sync({"mode": "replay", **batch(log[1:], prev=1)}) is None
    assert view.sync({"mode": "replay", **batch(log, prev=0)}) == batch(log, prev=0)["events"]
    assert view.states == {"a": {"n": 1}, "b": {"n": 2}}


def test_the_reason_of_the_last_snapshot_stays_over_a_replay():
    view = View("job:1")
    view.sync(snapshot(0))
    view.sync({"mode": "replay", **batch(log_of([draft()]), prev=0)})
    assert view.reason == "new"


def test_a_reader_that_lost_its_connection_waits_for_a_sync():
    log = log_of([draft("a", {"n": n}) for n in range(3)])
    view = View("job:1")
    view.sync(snapshot(1, {"a": {"n": 0}}))
    view.synced = False
    assert view.batch(batch(log[1:2], prev=1)) == []
    assert view.sync({"mode": "replay", **batch(log[1:], prev=1)}) == batch(log[1:], 1)["events"]
    assert view.states == {"a": {"n": 2}}


def test_the_states_of_a_snapshot_stay_the_servers_own():
    frame = snapshot(0, {"a": {"n": 0}})
    view = View("job:1")
    view.sync(frame)
    view.batch(batch(log_of([draft("a", {"n": 1}), draft("b", {})]), prev=0))
    assert frame["states"] == {"a": {"n": 0}}
