"""A spool is bounded, drops the least important drafts, and accounts for every draft."""

import sys

import msgspec
import pytest
from histories import KEYS, append_all, draft, log_of, states_after
from hypothesis import given, settings
from hypothesis import strategies as st

from semantik_realtime.core.event import Draft
from semantik_realtime.core.spool import Ranks, Spool

JOBS = ("a", "b")
SPOOL_FILE = Spool.add.__code__.co_filename


def job_drafts(terminal: list[bool]) -> st.SearchStrategy[Draft]:
    """Drafts of two jobs and their children: progress and ends of several attempts."""
    return st.builds(
        draft,
        st.sampled_from(KEYS),
        st.sampled_from([msgspec.UNSET, None, {"n": 1}, {"n": 2}, {"n": 3}]),
        data=st.sampled_from([None, {"text": "x" * 60}]),
        terminal=st.sampled_from(terminal),
        topic=st.sampled_from(["job:1", "user:7"]),
        job=st.sampled_from(JOBS),
        attempt=st.sampled_from([None, 0, 1, 2]),
    )


lines = st.sampled_from([0, 20, 60]).map(lambda n: draft(data={"text": "x" * n}))
any_drafts = st.lists(job_drafts([False, False, False, True]) | lines, max_size=40)
limits = st.tuples(st.integers(1, 12), st.integers(100, 2000))


# Few topics, keys and attempts, so that drafts supersede and refuse each other.
crowded = st.builds(
    draft,
    st.sampled_from(["a", "b"]),
    st.sampled_from([msgspec.UNSET, {"n": 1}, {"n": 2}, {"n": 3}]),
    terminal=st.sampled_from([False, False, True]),
    topic=st.sampled_from(["job:1", "job:1", "user:7"]),
    job=st.sampled_from(JOBS),
    attempt=st.sampled_from([None, 1, 2]),
)


def is_ordered_part(part, whole):
    rest = iter(whole)
    return all(any(one is other for other in rest) for one in part)


def taken(spool, *limits, **more):
    """Return the next batch, acknowledged at once."""
    flight = spool.next_batch(*limits, **more)
    spool.ack()
    return flight


@given(any_drafts, limits, st.data())
def test_bounds_always_hold_and_every_draft_waits_is_sent_or_is_dropped(drafts, limits, data):
    max_drafts, max_bytes = limits
    spool = Spool(max_drafts, max_bytes)
    sent, flight, lost = [], [], []
    for number, one in enumerate(drafts, start=1):
        lost += spool.add(one)
        assert len(spool) - len(flight) <= max_drafts
        assert spool.bytes - sum(len(other.body) for other in flight) <= max_bytes
        assert spool.added == number
        what = data.draw(st.integers(0, 4))
        if what == 0:
            flight = spool.next_batch(data.draw(st.integers(1, 3)))
        elif what == 1:
            sent += flight
            flight = []
            spool.ack()
        assert spool.since(0)[: len(flight)] == flight
    for _ in range(2):
        # The drafts in flight, if there are any, and all others.
        sent += taken(spool, 10**6, 10**9)
    assert len(spool) == spool.bytes == 0
    assert spool.oldest == spool.added == len(drafts)
    assert is_ordered_part(sent, drafts)
    everything = [*sent, *lost]
    assert sorted(map(id, everything)) == sorted(map(id, drafts))


@given(any_drafts, limits)
def test_an_end_is_dropped_only_when_nothing_else_is_left(drafts, limits):
    spool = Spool(*limits)
    for one in drafts:
        lost = spool.add(one)
        if len(one.body) <= limits[1] and any(other.terminal for other in lost):
            left = taken(spool, 10**6, 10**9)
            assert all(other.terminal for other in left)
            break


@given(st.lists(job_drafts([True]), max_size=12), limits)
def test_of_ends_alone_the_oldest_is_dropped_first_and_no_more_than_necessary(ends, limits):
    max_drafts, max_bytes = limits
    spool = Spool(max_drafts, max_bytes)
    waiting: list[Draft] = []
    for end in ends:
        if len(end.body) > max_bytes:
            continue
        waiting.append(end)
        expected = []
        while len(waiting) > max_drafts or sum(len(one.body) for one in waiting) > max_bytes:
            expected.append(waiting.pop(0))
        lost = spool.add(end)
        assert list(map(id, lost)) == list(map(id, expected))


@given(any_drafts, limits)
def test_the_newest_draft_is_kept_unless_ends_leave_no_room(drafts, limits):
    max_drafts, max_bytes = limits
    spool = Spool(max_drafts, max_bytes)
    ends: list[Draft] = []
    for one in drafts:
        lost = spool.add(one)
        ends = [end for end in [*ends, *[one] * one.terminal] if end not in lost]
        if one in lost and not one.terminal:
            size = sum(len(end.body) for end in ends) + len(one.body)
            assert len(ends) == max_drafts or size > max_bytes


@settings(max_examples=300)
@given(st.lists(crowded, min_size=4, max_size=14))
def test_dropping_superseded_drafts_does_not_change_the_resulting_states(drafts):
    """The fence must not refuse a later draft and accept the earlier one that it supersedes."""
    ranks = Ranks()
    for number, one in enumerate(drafts):
        ranks.add(number, one)
    assert not any(drafts[number].terminal for number in ranks.superseded)
    kept = [one for number, one in enumerate(drafts) if number not in ranks.superseded]
    for topic in ("job:1", "user:7"):
        states = [
            states_after(log_of(one for one in append_all(queue) if one.topic == topic))
            for queue in (drafts, kept)
        ]
        assert states[0] == states[1]


def progress(n, key="a", **more):
    return draft(key, {"n": n}, **more)


def numbers(drafts):
    return [int(one.body.split(b'"n":')[1].split(b"}")[0]) for one in drafts]


def test_a_superseded_state_is_dropped_before_any_other_draft():
    spool = Spool(max_drafts=3)
    line, first, second = draft(data={"n": 0}), progress(1), progress(2, "b")
    for one in (line, first, second):
        assert spool.add(one) == []
    latest = progress(3)
    assert spool.add(latest) == [first]
    assert taken(spool, 9) == [line, second, latest]


def test_of_one_attempt_only_the_last_state_is_kept():
    spool = Spool(max_drafts=5)
    others = [draft(data={"n": n}) for n in range(4)]
    for one in others:
        assert spool.add(one) == []
    assert spool.add(progress(0, job="1", attempt=1)) == []
    for n in range(1, 9):
        assert numbers(spool.add(progress(n, job="1", attempt=1))) == [n - 1]
    assert numbers(taken(spool, 9)) == [0, 1, 2, 3, 8]


def test_states_of_other_topics_keys_and_attempts_supersede_nothing():
    spool = Spool(max_drafts=4, max_bytes=10**6)
    for one in (
        progress(1, job="1", attempt=1),
        progress(2, job="1", attempt=2),
        progress(3, "b", job="1", attempt=2),
        progress(4, topic="job:2", job="1", attempt=2),
    ):
        assert spool.add(one) == []
    assert numbers(spool.add(draft(data={"n": 5}))) == [1]


def test_for_a_big_draft_as_many_are_dropped_as_necessary_and_no_more():
    spool = Spool(max_bytes=10 * len(draft(data={"n": 0}).body))
    for n in range(10):
        assert spool.add(draft(data={"n": n})) == []
    big = draft(data={"n": 10, "text": "x" * 2 * len(draft(data={"n": 0}).body)})
    assert numbers(spool.add(big)) == [0, 1, 2, 3]
    assert len(spool) == 7


def lines_run(call):
    """Return how many lines of the spool's own code a call runs.

    Other code may run in between, a finalizer of the garbage collection for
    example, so its lines do not count.
    """
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename != SPOOL_FILE:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("ends", [True, False])
def test_adding_to_a_full_spool_costs_the_same_whatever_its_size(ends):
    costs = set()
    for size in (100, 1000):
        full = Spool(max_drafts=size)
        for n in range(size + 1):
            full.add(progress(n, key=str(n), terminal=ends))
        costs.add(lines_run(lambda full=full: full.add(progress(0, "hot", terminal=ends))))
    assert len(costs) == 1
    assert costs.pop() > 5


def test_a_spool_that_was_emptied_can_be_filled_again():
    spool = Spool(max_drafts=2)
    for n in range(5):
        spool.add(progress(n))
    assert numbers(taken(spool, 9)) == [3, 4]
    for n in range(5, 8):
        spool.add(progress(n))
    assert numbers(taken(spool, 9)) == [6, 7]


@settings(max_examples=200)
@given(st.lists(crowded, max_size=30), limits, st.data())
def test_ranks_remember_only_drafts_that_wait(drafts, limits, data):
    spool = Spool(*limits)
    for one in drafts:
        spool.add(one)
        if data.draw(st.integers(0, 5)) == 0:
            taken(spool, data.draw(st.integers(1, 3)))
        if spool._ranks is None:
            continue
        runs = spool._ranks._runs.values()
        here = {number for number, _ in spool._drafts.items()}
        assert here >= spool._ranks.superseded.keys() | spool._ranks._plain.keys()
        assert here >= {number for _, newest in runs for number in newest.values()}
        assert len(runs) <= len(here)


def test_since_returns_the_drafts_from_a_running_number_on_in_order():
    spool = Spool()
    drafts = [progress(n, key=str(n)) for n in range(5)]
    for one in drafts:
        spool.add(one)
    assert spool.since(0) == drafts
    assert spool.since(3) == drafts[3:]
    assert spool.since(spool.added) == []
    taken(spool, 4)
    assert spool.since(2) == drafts[4:]


def test_drafts_in_flight_count_as_waiting_until_they_are_acknowledged():
    spool = Spool()
    drafts = [progress(n, key=str(n)) for n in range(5)]
    for one in drafts[:4]:
        spool.add(one)
    assert spool.next_batch(3) == drafts[:3]
    spool.add(drafts[4])
    assert spool.next_batch(9) == drafts[:3]
    assert spool.since(1) == drafts[1:]
    assert (spool.oldest, len(spool)) == (0, 5)
    assert spool.bytes == sum(len(one.body) for one in drafts)
    spool.ack()
    assert (spool.oldest, len(spool)) == (3, 2)
    assert spool.since(1) == spool.next_batch(9) == drafts[3:]


def test_drafts_in_flight_are_never_dropped():
    spool = Spool(max_drafts=1)
    ends = [progress(n, terminal=True) for n in range(3)]
    spool.add(ends[0])
    assert spool.next_batch(1) == ends[:1]
    assert spool.add(ends[1]) == []
    assert spool.add(ends[2]) == ends[1:2]
    assert spool.since(0) == [ends[0], ends[2]]


@pytest.mark.parametrize("max_drafts", [1, 2, 5])
def test_a_small_spool_keeps_the_newest(max_drafts):
    spool = Spool(max_drafts=max_drafts)
    for n in range(9):
        spool.add(draft(data={"n": n}))
    assert numbers(taken(spool, 99)) == list(range(9 - max_drafts, 9))


def test_a_draft_that_is_over_the_limit_alone_displaces_no_other():
    spool = Spool(max_bytes=1000)
    plain, end = progress(1), progress(2, terminal=True)
    spool.add(plain)
    spool.add(end)
    huge = draft(data={"text": "x" * 1000}, terminal=True)
    assert spool.add(huge) == [huge]
    assert spool.added == 3
    assert taken(spool, 9) == [plain, end]


def test_a_batch_has_the_oldest_drafts_in_order_and_at_least_one():
    spool = Spool()
    drafts = [progress(n, key=str(n)) for n in range(5)]
    for one in drafts:
        spool.add(one)
    assert taken(spool, 2) == drafts[:2]
    assert spool.oldest == 2
    assert taken(spool, 9, max_bytes=1) == [drafts[2]]
    assert taken(spool, 9, max_bytes=len(drafts[3].body) + len(drafts[4].body)) == drafts[3:]
    assert taken(spool, 9) == []
    assert (spool.oldest, spool.added) == (5, 5)


def test_drafts_in_flight_are_not_superseded():
    spool = Spool(max_drafts=1)
    first = progress(1)
    spool.add(first)
    assert spool.next_batch(1) == [first]
    assert spool.add(progress(2)) == []
