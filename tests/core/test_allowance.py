"""A client's allowance: a burst at once, then a rate, and how long it has been exceeded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.allowance import Allowance
from semantik_realtime.core.limits import AUTH_UNITS, MAX_TOPICS
from semantik_realtime.core.session import (
    Authenticate,
    Send,
    SessionLimits,
    Subscribe,
    Unsubscribe,
    units_of,
)

BURST, PER_SECOND = 30, 8
PAUSES = st.integers(0, 40).map(lambda eighths: eighths / 8)
FRAMES = st.lists(st.tuples(st.integers(1, 50), PAUSES), max_size=60)
"""The units of each frame, and how long the client waits before it sends it."""


def allowance(now=100.0):
    return Allowance(BURST, PER_SECOND, now)


def read(frames, now=100.0):
    """Read ``frames`` as the server does; return when each was read, and its units."""
    made = allowance(now)
    sent, read_at, free_at = now, [], now
    for units, pause in frames:
        sent += pause
        at = max(sent, free_at)
        free_at = at + made.spend(units, at)
        read_at.append((at, units))
    return made, read_at


def test_a_burst_costs_no_wait_and_the_next_unit_does():
    made = allowance()
    assert [made.spend(1, 100.0) for _ in range(BURST)] == [0.0] * BURST
    assert made.spend(1, 100.0) == pytest.approx(1 / PER_SECOND)


def test_a_frame_that_costs_more_than_is_left_is_read_and_the_next_one_waits_longer():
    assert allowance().spend(BURST + 20, 100.0) == pytest.approx(2.5)


def test_an_idle_client_gets_its_burst_back_and_no_more():
    made = allowance()
    made.spend(BURST, 100.0)
    assert made.spend(BURST, 1000.0) == 0.0
    assert made.spend(1, 1000.0) > 0


def test_a_clock_that_stands_still_or_goes_back_gives_nothing():
    made = allowance()
    made.spend(BURST, 100.0)
    assert made.spend(1, 50.0) == pytest.approx(1 / PER_SECOND)
    assert made.spend(1, 100.0) == pytest.approx(2 / PER_SECOND)


@given(FRAMES)
def test_in_no_time_are_more_units_read_than_the_burst_the_rate_and_one_frame(frames):
    _, read_at = read(frames)
    for first in range(len(read_at)):
        for last in range(first, len(read_at)):
            seconds = read_at[last][0] - read_at[first][0]
            # The last frame is read although it costs more than is left: the next one waits.
            units = sum(units for _, units in read_at[first:last])
            assert units <= BURST + PER_SECOND * seconds + 1e-6


@given(FRAMES)
def test_a_client_below_the_rate_never_waits(frames):
    made, now = allowance(), 100.0
    for units, pause in frames:
        now += pause + min(units, BURST) / PER_SECOND
        assert made.spend(min(units, BURST), now) == 0.0
        assert made.behind_seconds(now) == 0.0


def test_a_client_is_behind_from_its_first_wait_until_a_frame_that_costs_none():
    made = allowance()
    made.spend(BURST, 100.0)
    assert made.behind_seconds(100.0) == 0.0
    for tick in range(50):
        made.spend(1, 101.0 + 0.05 * tick)
    assert made.behind_seconds(104.0) > 2.0
    made.spend(1, 200.0)
    assert made.behind_seconds(200.0) == 0.0


def test_what_a_frame_costs_is_what_the_server_does_for_it():
    topics = dict.fromkeys((f"job:{number}" for number in range(100)), None)
    assert units_of("x") == units_of("x", [Send("x")]) == units_of("x", [Unsubscribe(["a:1"])]) == 1
    assert units_of("x", [Subscribe(topics, 0)]) == 101
    assert units_of("x", [Authenticate("t")]) == 1 + AUTH_UNITS
    # To read a big frame takes longer, also if nothing follows from it.
    assert units_of(b"x" * 65536) == 65


@pytest.mark.parametrize("topics", [1, MAX_TOPICS, 10 * MAX_TOPICS])
def test_a_page_may_exchange_all_its_topics_at_once(topics):
    limits = SessionLimits(topics=topics)
    made = Allowance(limits.burst, limits.per_second, 0.0)
    # One frame for each topic, as a client without batches sends them.
    for _ in range(topics):
        assert made.spend(1, 0.0) == 0.0
    for _ in range(topics):
        assert made.spend(2, 0.0) == 0.0
