"""A replay continues only the client's own history."""

import pytest
from histories import drafts, log_of
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.limits import MAX_REPLAY
from semantik_realtime.core.resume import (
    LogInfo,
    Reason,
    check_replay,
    plan_page,
    plan_sync,
    take_bytes,
)


def place(events, offset, epoch="e"):
    return Cursor(epoch, offset, events[offset - 1].chain if offset else 0)


def plan(asked, events, *, kept, limit=MAX_REPLAY, epoch="e"):
    """Plan as a backend does whose log keeps its newest ``kept`` entries."""
    first = len(events) - kept + 1
    end = place(events, len(events))
    there = None
    if asked is not None and first <= asked.offset <= end.offset and asked.offset > 0:
        there = events[asked.offset - 1].chain
    return plan_sync(asked, LogInfo(epoch, end.offset, end.chain, first), there, limit)


@given(st.lists(drafts, max_size=12), st.data())
def test_a_cursor_of_the_same_history_is_replayed_as_far_as_the_log_reaches(entries, data):
    events = log_of(entries)
    offset = data.draw(st.integers(0, len(events)))
    kept = data.draw(st.integers(0, len(events)))
    limit = data.draw(st.integers(0, 12))
    reason = plan(place(events, offset), events, kept=kept, limit=limit)
    missed, dropped = len(events) - offset, len(events) - kept
    if missed > kept:
        assert reason is Reason.TRIMMED
    elif missed > limit:
        assert reason is Reason.TOO_FAR
    elif offset == dropped and missed and offset:
        # All events are kept, but the chain of the cursor can no longer be checked.
        assert reason is Reason.TRIMMED
    else:
        assert reason is None


@given(
    st.lists(drafts, max_size=6),
    st.lists(drafts, max_size=6),
    st.lists(drafts, max_size=6),
    st.data(),
)
def test_a_cursor_of_a_forked_history_is_never_replayed_beyond_the_fork(common, mine, theirs, data):
    my_log, their_log = log_of([*common, *mine]), log_of([*common, *theirs])
    shared = sum(
        1 for one, other in zip(my_log, their_log, strict=False) if one.chain == other.chain
    )
    offset = data.draw(st.integers(0, len(my_log)))
    kept = data.draw(st.integers(0, len(their_log)))
    reason = plan(place(my_log, offset), their_log, kept=kept)
    if reason is None:
        assert offset <= shared
        assert [one.json for one in my_log[:offset]] == [one.json for one in their_log[:offset]]
        assert len(their_log) - offset <= kept
    elif offset > len(their_log):
        assert reason is Reason.AHEAD
    elif offset > shared:
        assert reason in (Reason.DIVERGED, Reason.TRIMMED)
        if kept == len(their_log):
            assert reason is Reason.DIVERGED
    else:
        assert reason is Reason.TRIMMED


@given(
    st.none()
    | st.builds(Cursor, st.sampled_from(["", "e", "f"]), st.integers(0, 2**53), st.integers(0, 9)),
    st.lists(drafts, max_size=6),
    st.data(),
)
def test_any_cursor_gets_a_plan_and_no_exception(asked, entries, data):
    events = log_of(entries)
    reason = plan(asked, events, kept=data.draw(st.integers(0, len(events))))
    if asked is None:
        assert reason is Reason.NEW
    elif asked.epoch != "e":
        assert reason is Reason.EPOCH
    elif asked.offset > len(events):
        assert reason is Reason.AHEAD
    elif reason is None:
        assert asked == place(events, asked.offset)


def test_unreadable_cursors_get_a_snapshot():
    assert plan_sync(Cursor.parse("rubbish"), LogInfo("e", 0, 0, 1), None) is Reason.EPOCH


def test_a_thousand_events_are_replayed_and_one_more_is_too_far():
    log = LogInfo("e", 5000, 7, first=1)
    assert plan_sync(Cursor("e", 4000, 3), log, 3) is None
    assert plan_sync(Cursor("e", 3999, 3), log, 3) is Reason.TOO_FAR


def test_at_the_end_of_the_log_the_chain_of_the_log_is_compared():
    trimmed_bare = LogInfo("e", 20, 0xABC, first=21)
    assert plan_sync(Cursor("e", 20, 0xABC), trimmed_bare, None) is None
    assert plan_sync(Cursor("e", 20, 0xABD), trimmed_bare, None) is Reason.DIVERGED


def test_the_beginning_of_the_log_has_the_chain_0():
    log = LogInfo("e", 3, 0xABC, first=1)
    assert plan_sync(Cursor("e", 0, 0), log, None) is None
    assert plan_sync(Cursor("e", 0, 1), log, None) is Reason.DIVERGED


@given(st.integers(0, 5), st.integers(0, 8), st.data())
def test_a_replay_that_was_cut_is_too_far_and_one_with_a_hole_is_trimmed(start, missed, data):
    whole = [Event(start + n, 0, b"") for n in range(1, missed + 1)]
    asked, end = Cursor("e", start, 0), Cursor("e", start + missed, 0)
    assert check_replay(asked, whole, end) is None
    if missed:
        kept = data.draw(st.integers(0, missed - 1))
        assert check_replay(asked, whole[:kept], end) is Reason.TOO_FAR
    if missed > 1:
        hole = data.draw(st.integers(0, missed - 2))
        assert check_replay(asked, whole[:hole] + whole[hole + 1 :], end) is Reason.TRIMMED


@pytest.mark.parametrize(
    ("asked", "reason"),
    [(Cursor("", 0, 0), None), (Cursor("", 3, 0), Reason.EPOCH), (Cursor("e", 0, 0), Reason.EPOCH)],
)
def test_only_a_page_from_the_beginning_continues_in_a_topic_that_is_not_known(asked, reason):
    assert plan_page(asked, None, None) is reason


@given(st.lists(drafts, max_size=6), st.integers(0, 8), st.data())
def test_a_page_after_a_bare_offset_is_refused_only_beyond_the_end(entries, offset, data):
    events = log_of(entries)
    kept = data.draw(st.booleans()) and 0 < offset <= len(events)
    reason = plan_page(
        Cursor("", offset, 7), place(events, len(events)), events[offset - 1] if kept else None
    )
    assert reason is (Reason.AHEAD if offset > len(events) else None)


@given(st.lists(drafts, max_size=6), st.data())
def test_a_page_after_a_cursor_continues_only_a_history_that_can_be_compared(entries, data):
    events = log_of(entries)
    end = place(events, len(events))
    offset = data.draw(st.integers(0, len(events)))
    mine = place(events, offset)
    other = Cursor("e", offset, mine.chain + 1)
    there = events[offset - 1] if offset else None
    assert plan_page(mine, end, there) is None
    assert plan_page(other, end, there) is Reason.DIVERGED
    is_inside = 0 < offset < len(events)
    assert plan_page(mine, end, None) is (Reason.TRIMMED if is_inside else None)
    assert plan_page(other, end, None) is (Reason.TRIMMED if is_inside else Reason.DIVERGED)
    assert plan_page(Cursor("f", offset, mine.chain), end, there) is Reason.EPOCH
    assert plan_page(Cursor("e", len(events) + 1, 0), end, None) is Reason.AHEAD


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(0, 120))
def test_an_answer_has_as_many_events_as_fit_and_at_least_one(sizes, max_bytes):
    log = [Event(n, 0, b"x" * size) for n, size in enumerate(sizes, 1)]
    rest = iter(log)
    taken = take_bytes(rest, max_bytes)
    assert take_bytes(log, sum(sizes)) == log
    count = len(taken)
    assert taken == log[:count]
    assert count <= 1 or sum(sizes[:count]) <= max_bytes
    if count < len(log):
        assert taken
        assert sum(sizes[: count + 1]) > max_bytes
        assert len(list(rest)) == len(log) - count - 1
