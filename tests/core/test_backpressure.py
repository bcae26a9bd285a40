"""A slow connection gets fewer events, and the same states."""

import json

import msgspec
from histories import KEYS, draft, log_of, logs, states_after
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.backpressure import (
    EDGE,
    Limits,
    Write,
    conflate,
    is_slow_write,
    plan_write,
)
from semantik_realtime.core.fold import fold
from semantik_realtime.core.limits import PIECE_BYTES


def folded(events):
    states: dict[str, msgspec.Raw] = {}
    fold(states, [event.head() for event in events])
    return {key: json.loads(bytes(state)) for key, state in states.items()}


many = logs(max_size=60)


@given(many)
def test_conflation_never_changes_the_folded_state(log):
    assert folded(conflate(log)) == folded(log) == states_after(log)


@given(many, many)
def test_conflation_gives_the_same_states_whatever_came_before(before, waiting):
    assert folded([*before, *conflate(waiting)]) == folded([*before, *waiting])


@given(many)
def test_conflation_keeps_the_order_and_adds_nothing(log):
    kept = {event.offset for event in conflate(log)}
    assert conflate(log) == [event for event in log if event.offset in kept]


@given(many)
def test_conflation_keeps_every_terminal_event(log):
    ends = [event for event in log if event.head().terminal]
    assert [event for event in conflate(log) if event.head().terminal] == ends


@given(many)
def test_the_number_of_conflated_events_is_bounded(log):
    ends = sum(event.head().terminal for event in log)
    assert len(conflate(log)) <= len(KEYS) + ends + 2 * EDGE


@given(many)
def test_conflating_again_changes_nothing(log):
    assert conflate(conflate(log)) == conflate(log)


def test_the_first_and_last_ten_events_without_a_state_are_kept():
    log = log_of(draft(data={"line": line}) for line in range(5000))
    assert [event.offset for event in conflate(log)] == [*range(1, 11), *range(4991, 5001)]


def test_the_deletion_of_a_key_is_kept():
    log = log_of([draft("a", {"n": 1}), draft("a", None)])
    assert [event.offset for event in conflate(log)] == [2]


def test_a_limit_itself_is_still_allowed():
    limits = Limits(conflate_above_bytes=100, evict_above_bytes=200)
    assert [plan_write(size, limits, is_slow=True) for size in (0, 100, 101, 200, 201)] == [
        Write.WHOLE,
        Write.WHOLE,
        Write.CONFLATED,
        Write.CONFLATED,
        Write.EVICT,
    ]


def test_what_arrives_at_once_is_whole_for_a_connection_that_is_not_slow():
    limits = Limits(conflate_above_bytes=100, evict_above_bytes=200)
    assert plan_write(200, limits, is_slow=False) is Write.WHOLE
    assert plan_write(201, limits, is_slow=False) is Write.WHOLE


def test_a_large_frame_may_take_longer():
    assert [is_slow_write(seconds, 100) for seconds in (0.25, 0.26)] == [False, True]
    assert [is_slow_write(seconds, 4 * PIECE_BYTES) for seconds in (1.0, 1.1)] == [False, True]


def test_the_default_limits_are_those_of_the_protocol():
    assert Limits() == Limits(64 * 1024, 1024 * 1024, 30.0)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.booleans())
def test_more_unsent_bytes_never_lead_to_a_more_generous_plan(one, other, slow):
    order = [Write.WHOLE, Write.CONFLATED, Write.EVICT]
    less, more = sorted((one, other))
    assert order.index(plan_write(less, Limits(), is_slow=slow)) <= order.index(
        plan_write(more, Limits(), is_slow=slow)
    )
