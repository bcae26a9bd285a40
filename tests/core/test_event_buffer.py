"""The newest events of a topic: contiguous, bounded, and read at any position."""

from itertools import pairwise

import msgspec
from histories import draft, drafts, log_of, logs
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.splice import Admission, EventBuffer


def cursor_at(log, index):
    """The position after the first ``index`` events."""
    return Cursor("e", log[index - 1].offset, log[index - 1].chain) if index else Cursor("e", 0, 0)


def buffer_from(log, index):
    buffer = EventBuffer()
    buffer.restart(cursor_at(log, index))
    return buffer


def slices(log):
    ends = st.integers(0, len(log))
    return st.tuples(ends, ends).map(sorted)


def kept(buffer):
    return buffer.since(buffer.base.offset)


@given(logs(), st.data())
def test_overlapping_batches_add_up_to_the_log(log, data):
    start = data.draw(st.integers(0, len(log)))
    buffer = buffer_from(log, start)
    reached = start
    for first, end in data.draw(st.lists(slices(log), max_size=12)):
        admission = buffer.admit(cursor_at(log, first), log[first:end])
        if first > reached:
            assert admission is Admission.GAP
        elif end > reached:
            assert admission is Admission.FRESH
            reached = end
        else:
            assert admission is Admission.KNOWN
        assert kept(buffer) == log[start:reached]
        assert buffer.cursor == cursor_at(log, reached)
        assert buffer.offset == buffer.cursor.offset
        assert len(buffer) == reached - start
        assert buffer.bytes == sum(len(event.json) for event in log[start:reached])


@given(logs(), st.data())
def test_a_snapshot_at_any_position_and_the_live_events_are_the_whole_log(log, data):
    begin = data.draw(st.integers(0, len(log)))
    read = data.draw(st.integers(begin, len(log)))
    # The subscription is older than the reading: live batches begin before the snapshot ends.
    live = data.draw(st.integers(0, read))
    cuts = sorted(data.draw(st.sets(st.integers(live, len(log)))) | {live, len(log)})
    buffer = buffer_from(log, begin)
    buffer.admit(cursor_at(log, begin), log[begin:read])
    for first, end in pairwise(cuts):
        assert buffer.admit(cursor_at(log, first), log[first:end]) in (
            Admission.FRESH,
            Admission.KNOWN,
        )
    assert kept(buffer) == log[begin:]


@given(logs(), st.data())
def test_since_returns_all_events_after_an_offset_or_none_if_some_are_dropped(log, data):
    buffer = buffer_from(log, 0)
    buffer.admit(cursor_at(log, 0), log)
    buffer.trim(
        needed=data.draw(st.integers(0, 60)),
        keep_events=data.draw(st.integers(0, 10)),
        max_bytes=data.draw(st.integers(0, 3000)),
    )
    for offset in range(0, (log[-1].offset if log else 0) + 3):
        after = [event for event in log if event.offset > offset]
        found = buffer.since(offset)
        assert found == after or (found is None and len(after) > len(buffer))


@given(logs(), st.integers(0, 60), st.integers(0, 10), st.integers(0, 3000))
def test_trimming_keeps_the_needed_events_unless_they_have_too_many_bytes(
    log, needed, keep_events, max_bytes
):
    buffer = buffer_from(log, 0)
    buffer.admit(cursor_at(log, 0), log)
    buffer.trim(needed, keep_events, max_bytes)
    left = kept(buffer)
    assert left == log[len(log) - len(left) :]
    assert buffer.bytes == sum(len(event.json) for event in left) <= max_bytes
    assert buffer.cursor == cursor_at(log, len(log))
    wanted = max(min(keep_events, len(log)), sum(1 for event in log if event.offset > needed))
    if len(left) < wanted:
        # One more would have had too many bytes.
        assert sum(len(event.json) for event in log[len(log) - len(left) - 1 :]) > max_bytes
    else:
        assert len(left) == wanted


@given(logs(), st.integers(0, 60), st.integers(0, 1000), st.integers(0, 3000))
def test_what_is_spared_may_have_more_bytes(log, spared, max_bytes, more_bytes):
    buffer = buffer_from(log, 0)
    buffer.admit(cursor_at(log, 0), log)
    spare_bytes = max_bytes + more_bytes
    buffer.trim(0, 0, max_bytes, spared=spared, spare_bytes=spare_bytes)
    left = kept(buffer)
    assert left == log[len(log) - len(left) :]
    assert buffer.bytes == sum(len(event.json) for event in left) <= spare_bytes
    wanted = [event for event in log if event.offset > spared]
    if len(left) < len(wanted):
        assert sum(len(event.json) for event in log[len(log) - len(left) - 1 :]) > spare_bytes
    elif len(left) > len(wanted):
        assert buffer.bytes <= max_bytes


@given(logs(), st.data())
def test_a_cursor_is_known_exactly_if_it_is_a_position_in_the_kept_history(log, data):
    buffer = buffer_from(log, 0)
    buffer.admit(cursor_at(log, 0), log)
    buffer.trim(needed=data.draw(st.integers(0, 60)), keep_events=3, max_bytes=10**6)
    for index in range(len(log) + 1):
        cursor = cursor_at(log, index)
        assert buffer.knows(cursor) == (cursor.offset >= buffer.base.offset)
        assert not buffer.knows(Cursor("f", cursor.offset, cursor.chain))
        assert not buffer.knows(Cursor("e", cursor.offset, cursor.chain ^ 1))
    places = {cursor_at(log, index).offset for index in range(len(log) + 1)}
    for offset in set(range(max(places) + 3)) - places:
        assert not buffer.knows(Cursor("e", offset, 0))


@given(
    st.lists(drafts, max_size=6),
    st.lists(drafts, min_size=1, max_size=6),
    st.lists(drafts, min_size=1, max_size=6),
    st.data(),
)
def test_an_overlapping_batch_of_a_rewritten_log_has_diverged_and_changes_nothing(
    common, mine, theirs, data
):
    mine[0], theirs[0] = draft(data={"fork": "mine"}), draft(data={"fork": "theirs"})
    my_log, their_log = log_of([*common, *mine]), log_of([*common, *theirs])
    buffer = buffer_from(my_log, data.draw(st.integers(0, len(common))))
    buffer.admit(buffer.cursor, my_log[buffer.offset :])
    first = data.draw(st.integers(0, len(common)))
    end = data.draw(st.integers(len(common) + 1, len(their_log)))
    admission = buffer.admit(cursor_at(their_log, first), their_log[first:end])
    assert admission is Admission.DIVERGED
    assert buffer.cursor == cursor_at(my_log, len(my_log))
    assert kept(buffer) == my_log[buffer.base.offset :]


@given(
    st.lists(drafts, max_size=6),
    st.lists(drafts, min_size=1, max_size=6),
    st.integers(1, 4),
    st.data(),
)
def test_an_event_of_a_rewritten_log_is_not_added_though_its_offset_follows(
    common, lost, fresh, data
):
    """A promoted replica lost the last events, and appended at least as many others."""
    lost[0] = draft(data={"fork": "mine"})
    theirs = [draft(data={"fork": n}) for n in range(len(lost) + fresh)]
    my_log, their_log = log_of([*common, *lost]), log_of([*common, *theirs])
    buffer = buffer_from(my_log, 0)
    buffer.admit(cursor_at(my_log, 0), my_log)
    buffer.trim(data.draw(st.integers(0, len(my_log))), 0, 10**6)
    before = kept(buffer)
    follows = data.draw(st.integers(0, len(my_log)))
    batch = their_log[follows : data.draw(st.integers(len(my_log) + 1, len(their_log)))]
    assert buffer.admit(cursor_at(their_log, follows), batch) is Admission.DIVERGED
    assert (kept(buffer), buffer.cursor) == (before, cursor_at(my_log, len(my_log)))


@given(logs(min_size=1))
def test_a_batch_of_another_epoch_changes_nothing(log):
    buffer = buffer_from(log, 0)
    assert buffer.admit(Cursor("f", 0, 0), log) is Admission.OTHER_EPOCH
    assert kept(buffer) == []
    assert buffer.cursor == Cursor("e", 0, 0)


def test_before_its_first_position_a_buffer_admits_nothing_and_knows_nothing():
    buffer = EventBuffer()
    assert buffer.admit(Cursor("", 0, 0), log_of([draft()])) is Admission.OTHER_EPOCH
    assert not buffer.knows(Cursor.parse("rubbish"))


@given(logs(min_size=1), st.data())
def test_a_restart_drops_all_events(log, data):
    buffer = buffer_from(log, 0)
    buffer.admit(cursor_at(log, 0), log)
    there = Cursor("f", data.draw(st.integers(0, 60)), 7)
    buffer.restart(there)
    assert (buffer.cursor, buffer.base, buffer.epoch) == (there, there, "f")
    assert (len(buffer), buffer.bytes, kept(buffer)) == (0, 0, [])
    assert buffer.knows(there)
    assert buffer.since(there.offset - 1) is None


@given(logs(min_size=1), st.data())
def test_watchers_of_any_speed_read_every_event_once(log, data):
    """Trimming to the position of the slowest watcher drops no event that one still needs."""
    buffer = buffer_from(log, 0)
    positions = [0, 0, 0]
    read: list[list[msgspec.Struct]] = [[], [], []]
    reached = 0
    while reached < len(log) or any(len(mine) < len(log) for mine in read):
        if reached < len(log):
            end = data.draw(st.integers(reached + 1, len(log)))
            buffer.admit(cursor_at(log, reached), log[reached:end])
            reached = end
        watchers = [0, 1, 2] if reached == len(log) else data.draw(st.sets(st.integers(0, 2)))
        for watcher in watchers:
            read[watcher] += buffer.since(positions[watcher])
            positions[watcher] = buffer.offset
        buffer.trim(needed=min(positions), keep_events=0, max_bytes=10**6)
    assert read == [log, log, log]
