"""Readings and live batches join without a gap and without a duplicate."""

from collections import deque
from itertools import count, pairwise
from typing import Any

import msgspec
from histories import draft, drafts, log_of, logs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.resume import LogInfo, plan_sync
from semantik_realtime.core.splice import (
    NOWHERE,
    Admission,
    EventBuffer,
    Phase,
    ResyncReason,
    Splice,
)


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
        admission = buffer.admit("e", cursor_at(log, first).offset, log[first:end])
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
    buffer.admit("e", cursor_at(log, begin).offset, log[begin:read])
    for first, end in pairwise(cuts):
        assert buffer.admit("e", cursor_at(log, first).offset, log[first:end]) in (
            Admission.FRESH,
            Admission.KNOWN,
        )
    assert kept(buffer) == log[begin:]


@given(logs(), st.data())
def test_since_returns_all_events_after_an_offset_or_none_if_some_are_dropped(log, data):
    buffer = buffer_from(log, 0)
    buffer.admit("e", 0, log)
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
    buffer.admit("e", 0, log)
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


@given(logs(), st.data())
def test_a_cursor_is_known_exactly_if_it_is_a_position_in_the_kept_history(log, data):
    buffer = buffer_from(log, 0)
    buffer.admit("e", 0, log)
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
def test_an_overlapping_batch_of_a_rewritten_log_is_a_gap_and_changes_nothing(
    common, mine, theirs, data
):
    mine[0], theirs[0] = draft(data={"fork": "mine"}), draft(data={"fork": "theirs"})
    my_log, their_log = log_of([*common, *mine]), log_of([*common, *theirs])
    buffer = buffer_from(my_log, data.draw(st.integers(0, len(common))))
    buffer.admit("e", buffer.offset, my_log[buffer.offset :])
    first = data.draw(st.integers(0, len(common)))
    end = data.draw(st.integers(len(common) + 1, len(their_log)))
    admission = buffer.admit("e", cursor_at(their_log, first).offset, their_log[first:end])
    assert admission is Admission.GAP
    assert buffer.cursor == cursor_at(my_log, len(my_log))
    assert kept(buffer) == my_log[buffer.base.offset :]


@given(logs(min_size=1))
def test_a_batch_of_another_epoch_changes_nothing(log):
    buffer = buffer_from(log, 0)
    assert buffer.admit("f", 0, log) is Admission.OTHER_EPOCH
    assert kept(buffer) == []
    assert buffer.cursor == Cursor("e", 0, 0)


def test_before_its_first_position_a_buffer_admits_nothing_and_knows_nothing():
    buffer = EventBuffer()
    assert buffer.admit("", 0, log_of([draft()])) is Admission.OTHER_EPOCH
    assert not buffer.knows(Cursor.parse("rubbish"))


@given(logs(min_size=1), st.data())
def test_a_restart_drops_all_events(log, data):
    buffer = buffer_from(log, 0)
    buffer.admit("e", 0, log)
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
            buffer.admit("e", cursor_at(log, reached).offset, log[reached:end])
            reached = end
        watchers = [0, 1, 2] if reached == len(log) else data.draw(st.sets(st.integers(0, 2)))
        for watcher in watchers:
            read[watcher] += buffer.since(positions[watcher])
            positions[watcher] = buffer.offset
        buffer.trim(needed=min(positions), keep_events=0, max_bytes=10**6)
    assert read == [log, log, log]


MAX_HELD = 4
REPLAY_LIMIT = 6


class Reading:
    """What one atomic read of the log returned, to be joined later."""

    def __init__(self, asked: Cursor | None, end: Cursor, replay: list[Event] | None) -> None:
        self.asked, self.end, self.replay = asked, end, replay


class Follower:
    """A watcher: applies the events that follow its position."""

    def __init__(self, place: Cursor) -> None:
        self.place = place

    def collect(self, buffer: EventBuffer, histories: list[list[Event]]) -> bool:
        """Apply the waiting events, each right after the one before. False: some were trimmed."""
        events = buffer.since(self.place.offset)
        if events is None:
            return False
        if events:
            offset = self.place.offset
            assert [event.offset for event in events] == [
                *range(offset + 1, offset + 1 + len(events))
            ]
            assert any(
                history[offset : offset + len(events)] == events
                and (history[offset - 1].chain if offset else 0) == self.place.chain
                for history in histories
            ), "the events do not follow the position in any history"
            self.place = buffer.cursor
        return True


class Splicing(RuleBasedStateMachine):
    """One topic at the backend, the splice of one web process, and the watchers.

    The backend's publications arrive in order, but any may be lost or come
    twice. Readings are atomic, and join the splice at any later moment. A
    failover rewrites the history within its epoch; it breaks all connections,
    so publications and readings under way are lost, and the interruption is
    reported before any publication of the new history (see Subscriber).
    """

    def __init__(self) -> None:
        super().__init__()
        self.splice = Splice(max_held=MAX_HELD)
        self.epochs = count(1)
        # Every history of each epoch that was ever true; the last one of the last epoch grows.
        self.histories: dict[str, list[list[Event]]] = {}
        self.epoch = ""
        self.log: list[Event] = []
        self.first = 1
        self.made = 0
        self.line: deque[tuple[str, int, list[Event]]] = deque()
        # The end of the newest publication that reached the splice since the last interruption.
        self.delivered = NOWHERE
        self.readings: list[Reading] = []
        self.resync_reading: Reading | None = None
        self.resync_is_late = False
        self.followers: list[Follower] = []

    @property
    def end(self) -> Cursor:
        return Cursor(self.epoch, len(self.log), self.log[-1].chain) if self.log else NOWHERE

    def positions(self) -> list[Cursor | None]:
        """Cursors that a client may have."""
        known = [Cursor("", 0, 0), Cursor("e1", 3, 7)]
        for epoch, versions in self.histories.items():
            for history in versions:
                known.append(Cursor(epoch, 0, 0))
                known += [Cursor(epoch, event.offset, event.chain) for event in history]
        return [None, *known]

    def read_from(self, asked: Cursor | None) -> Reading:
        """Read as a backend does."""
        end = self.end
        if end == NOWHERE:
            return Reading(asked, NOWHERE, None)
        there = None
        if asked is not None and max(1, self.first) <= asked.offset <= end.offset:
            there = self.log[asked.offset - 1].chain
        info = LogInfo(self.epoch, end.offset, end.chain, self.first)
        if plan_sync(asked, info, there, REPLAY_LIMIT) is not None:
            return Reading(asked, end, None)
        assert asked is not None
        return Reading(asked, end, self.log[asked.offset :])

    @initialize(is_joined=st.booleans(), data=st.data())
    def begin(self, is_joined: bool, data: st.DataObject) -> None:
        if is_joined:
            self.read_and_join(data)

    # The backend.

    @rule(size=st.integers(1, 3))
    def append(self, size: int) -> None:
        if not self.log:
            self.epoch, self.first = f"e{next(self.epochs)}", 1
            self.log = []
            self.histories[self.epoch] = [self.log]
        prev = self.end if self.log else Cursor(self.epoch, 0, 0)
        fresh = [draft(data={"n": self.made + n}) for n in range(size)]
        self.made += size
        events = log_of(fresh, after=prev)
        self.log += events
        self.line.append((self.epoch, prev.offset, events))

    @rule(times=st.lists(st.sampled_from([1, 1, 1, 2, 0]), min_size=1, max_size=4))
    def append_and_deliver(self, times: list[int]) -> None:
        for number in times:
            self.append(1)
            self.deliver(number)

    @rule(data=st.data())
    def trouble(self, data: st.DataObject) -> None:
        """One rule for all troubles, so that most of the time all is well."""
        what = data.draw(st.sampled_from(["trim", "expire", "interrupt", "fail over"]))
        if what == "trim":
            self.first = max(self.first, len(self.log) - data.draw(st.integers(0, 3)) + 1)
        elif what == "expire":
            self.log = []
        elif what == "interrupt":
            self.interrupt()
        elif len(self.log) > 1:
            self.fail_over(data.draw(st.integers(1, min(3, len(self.log) - 1))), data)

    def fail_over(self, lost: int, data: st.DataObject) -> None:
        fresh = data.draw(st.integers(0, 3))
        self.log = self.log[: len(self.log) - lost]
        self.first = min(self.first, len(self.log) + 1)
        self.histories[self.epoch].append(self.log)
        if fresh:
            self.append(fresh)
        self.readings.clear()
        self.resync_reading = None
        self.interrupt()

    # What reaches the splice.

    @precondition(lambda self: self.line)
    @rule(times=st.sampled_from([1, 1, 1, 2, 0]))
    def deliver(self, times: int) -> None:
        batch = self.line.popleft()
        for _ in range(times):
            self.delivered = Cursor(batch[0], batch[2][-1].offset, batch[2][-1].chain)
            held_before, before = self.splice.held, self.splice.buffer.cursor
            admission = self.splice.receive(*batch)
            if self.splice.phase is not Phase.LIVE:
                assert admission is Admission.HELD
                assert self.splice.held == min(held_before + 1, MAX_HELD)
            elif admission.is_broken:
                assert self.splice.buffer.cursor == before
                assert self.splice.start_resync()

    def interrupt(self) -> None:
        self.line.clear()
        self.delivered = NOWHERE
        was = self.splice.phase
        assert self.splice.start_resync() == (was is not Phase.RESYNCING)
        assert self.splice.held == 0
        self.resync_is_late |= self.resync_reading is not None

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        self.readings.append(self.read_from(data.draw(st.sampled_from(self.positions()))))

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        reading = self.readings.pop(data.draw(st.integers(0, len(self.readings) - 1)))
        was = self.splice.phase
        reason = self.splice.join(reading.asked, reading.end, reading.replay)
        if was is Phase.RESYNCING:
            assert reason is None
            assert self.splice.phase is Phase.RESYNCING
            return
        assert self.splice.held == 0
        if reason is None:
            assert self.splice.buffer.knows(reading.end)
            self.followers.append(Follower(reading.end))
        else:
            assert reason in (ResyncReason.GAP, ResyncReason.AHEAD)
            assert self.splice.start_resync()

    @rule(data=st.data())
    def read_and_join(self, data: st.DataObject) -> None:
        self.read(data)
        self.join(data)

    @precondition(lambda self: self.splice.phase is Phase.RESYNCING)
    @rule()
    def resync(self) -> None:
        self.read_for_resync()
        self.finish_resync()

    @precondition(lambda self: self.splice.phase is Phase.RESYNCING)
    @rule()
    def read_for_resync(self) -> None:
        self.resync_reading = self.read_from(self.splice.asked)
        self.resync_is_late = False

    @precondition(lambda self: self.resync_reading is not None)
    @rule()
    def finish_resync(self) -> None:
        reading, self.resync_reading = self.resync_reading, None
        assert reading is not None
        is_complete = self.splice.finish_resync(reading.end, reading.replay)
        if reading.replay is None:
            for follower in self.followers:
                follower.place = reading.end
        assert self.splice.phase is (Phase.LIVE if is_complete else Phase.RESYNCING)
        assert not (is_complete and self.resync_is_late)
        assert not (is_complete and self.splice.held)
        # If the topic is unknown, late publications of its last epoch may be admitted.
        if reading.end == self.end != NOWHERE:
            assert self.splice.buffer.cursor == self.end

    # The watchers.

    @precondition(lambda self: self.splice.phase is Phase.LIVE)
    @rule(data=st.data())
    def follow(self, data: st.DataObject) -> None:
        buffer = self.splice.buffer
        known = [place for place in self.positions() if place is not None and buffer.knows(place)]
        if known:
            self.followers.append(Follower(data.draw(st.sampled_from(known))))

    @rule()
    def collect(self) -> None:
        histories = self.histories.get(self.splice.buffer.epoch or "", [])
        self.followers = [
            one for one in self.followers if one.collect(self.splice.buffer, histories)
        ]

    @rule(needed=st.integers(0, 30), keep_events=st.integers(0, 4))
    def trim(self, needed: int, keep_events: int) -> None:
        self.splice.buffer.trim(needed, keep_events, max_bytes=10**6)

    @invariant()
    def the_buffer_is_a_part_of_one_history_of_its_epoch(self) -> None:
        buffer = self.splice.buffer
        events = kept(buffer)
        if not buffer.epoch:
            assert (events, buffer.offset) == ([], 0)
            return
        assert any(
            self.is_part(history, buffer.base, events) for history in self.histories[buffer.epoch]
        )

    @staticmethod
    def is_part(history: list[Event], base: Cursor, events: list[Event]) -> bool:
        chain = history[base.offset - 1].chain if 0 < base.offset <= len(history) else 0
        after = history[base.offset : base.offset + len(events)]
        return base.offset <= len(history) and base.chain == chain and after == events

    @invariant()
    def a_live_position_includes_every_publication_that_was_delivered(self) -> None:
        buffer = self.splice.buffer
        is_current = self.log and self.delivered.epoch == self.epoch
        if self.splice.phase is Phase.LIVE and is_current:
            assert buffer.epoch == self.epoch
            assert buffer.offset >= self.delivered.offset

    @invariant()
    def held_batches_are_bounded(self) -> None:
        assert self.splice.held <= MAX_HELD

    def teardown(self) -> None:
        """When everything was delivered, a resync and the batches that it held reach the end."""
        if not self.log:
            self.append(1)
        while self.line:
            self.deliver(1)
        self.splice.start_resync()
        for _ in range(2):
            if self.splice.phase is Phase.RESYNCING:
                self.read_for_resync()
                self.finish_resync()
        assert self.splice.phase is Phase.LIVE
        assert self.splice.buffer.cursor == self.end
        self.collect()
        assert all(one.place == self.end for one in self.followers)


TestSplicing: Any = Splicing.TestCase
TestSplicing.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
