"""An application gets each event once, also where a failover has rewritten the log (R8)."""

import json

from histories import draft, log_of
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.fold import Gap, View
from semantik_realtime.core.limits import MAX_HISTORY
from semantik_realtime.core.shown import ShownEvents

numbers = st.lists(st.integers(0, 999), unique=True, max_size=30)


def plain(log):
    return [json.loads(event.json) for event in log]


def entries(values):
    return [draft(data={"n": value}) for value in values]


def passed_on(events):
    return [event["data"]["n"] for event in events]


def snapshot(log, reason, history):
    last = log[-1] if log else None
    cursor = Cursor("e", last.offset, last.chain) if last else Cursor("e", 0, 0)
    return {
        "mode": "snapshot",
        "reason": reason,
        "offset": cursor.offset,
        "cursor": str(cursor),
        "events": plain(log[len(log) - history :] if history else []),
    }


def batch(log, after):
    last = log[-1]
    return {
        "prev": after,
        "offset": last.offset,
        "cursor": str(Cursor("e", last.offset, last.chain)),
        "events": plain(log[after:]),
    }


@given(numbers, st.data())
def test_over_a_rewritten_log_no_event_is_passed_on_twice_and_none_of_the_new_ones_is_missing(
    values, data
):
    """Lost events are sent again, before or after the snapshot, at any offset, or not at all."""
    common = values[: data.draw(st.integers(0, len(values)))]
    lost = values[len(common) :]
    before, after = [], []
    for value in lost:
        where = data.draw(st.sampled_from([before, after, None]))
        if where is not None:
            where.append(value)
    other = [1000 + n for n in range(data.draw(st.integers(0, 5)))]
    later = [2000 + n for n in range(data.draw(st.integers(0, 5)))]
    before = data.draw(st.permutations(before + other))
    after = data.draw(st.permutations(after + later))
    mine, theirs = log_of(entries(values)), log_of(entries([*common, *before]))

    view = View("job:1")
    start = data.draw(st.integers(0, len(mine)))
    got = passed_on(view.sync(snapshot(mine[:start], "new", start)) or [])
    if mine[start:]:
        got += passed_on(view.batch(batch(mine, start)) or [])
    assert got == values
    history = data.draw(st.integers(len(before), len(theirs)))
    got += passed_on(view.sync(snapshot(theirs, "diverged", history)) or [])
    assert view.gap == Gap("diverged", None)
    whole = log_of(entries([*common, *before, *after]))
    if after:
        got += passed_on(view.batch(batch(whole, len(theirs))) or [])
    assert len(set(got)) == len(got)
    assert set(got) == {*values, *other, *later}


@given(numbers, st.integers(0, 30), st.integers(0, 30))
def test_of_the_same_log_only_what_follows_is_passed_on_and_what_is_missing_is_counted(
    values, position, history
):
    log = log_of(entries(values))
    position = min(position, len(log))
    history = min(history, len(log))
    view = View("job:1")
    view.sync(snapshot(log[:position], "new", position))
    got = passed_on(view.sync(snapshot(log, "too_far", history)) or [])
    missing = max(0, len(log) - position - history)
    assert got == values[position + missing :] or position == 0
    assert view.gap == (Gap("too_far", missing) if missing else None)


def test_equal_events_of_one_history_are_all_passed_on():
    event = {"type": "log", "data": {"text": "again"}}
    shown = ShownEvents()
    assert len(shown.add_batch([{"offset": 1, **event}, {"offset": 2, **event}])) == 2
    assert len(shown.add_batch([{"offset": 3, **event}])) == 1


def test_an_event_with_half_of_a_surrogate_pair_is_passed_on_once() -> None:
    shown = ShownEvents()
    event = {"offset": 1, "type": "log", "data": {"text": "\ud800"}}
    assert shown.add_batch([event]) == [event]
    assert shown.add_history([event], is_rewritten=False) == []


def test_a_lost_event_that_comes_again_is_held_back_once_and_an_equal_one_after_it_is_new() -> None:
    shown = ShownEvents()
    event = {"offset": 1, "type": "log", "data": {"text": "again"}}
    assert shown.add_batch([event]) == [event]
    assert shown.add_history([], is_rewritten=True) == []
    assert shown.add_batch([event | {"offset": 1}, event | {"offset": 2}]) == [
        {**event, "offset": 2}
    ]


def test_as_many_events_are_remembered_as_a_history_can_have() -> None:
    shown = ShownEvents()
    first, *rest = [{"offset": n, "type": "log", "data": {"n": n}} for n in range(MAX_HISTORY + 1)]
    shown.add_batch([first, *rest[:-1]])
    assert shown.add_history([first], is_rewritten=True) == []
    shown.add_batch(rest[-1:])
    assert shown.add_history([first, *rest], is_rewritten=True) == [first]


def test_a_history_adds_to_the_events_that_are_remembered() -> None:
    shown = ShownEvents()
    one, two, three = ({"offset": n, "type": "log", "data": {"n": n}} for n in (1, 2, 3))
    shown.add_batch([one, two])
    assert shown.add_history([two, three], is_rewritten=False) == [three]
    assert shown.add_history([one, two, three], is_rewritten=True) == []
