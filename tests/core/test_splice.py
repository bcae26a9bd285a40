"""Readings and live batches join without a gap and without a duplicate."""

from collections import deque
from itertools import count
from typing import Any

from histories import draft, log_of
from hypothesis import settings
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
    failover rewrites the history within its epoch. Mostly it breaks all
    connections, so publications and readings under way are lost, and the
    interruption is reported; a quiet one, as behind a proxy, breaks none, and
    the publications of both histories follow each other.
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
        self.line: deque[tuple[Cursor, list[Event]]] = deque()
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
        self.line.append((prev, events))

    @rule(times=st.lists(st.sampled_from([1, 1, 1, 2, 0]), min_size=1, max_size=4))
    def append_and_deliver(self, times: list[int]) -> None:
        for number in times:
            self.append(1)
            self.deliver(number)

    @rule(data=st.data())
    def trouble(self, data: st.DataObject) -> None:
        """One rule for all troubles, so that most of the time all is well."""
        what = data.draw(
            st.sampled_from(["trim", "expire", "interrupt", "fail over", "fail over quietly"])
        )
        if what == "trim":
            self.first = max(self.first, len(self.log) - data.draw(st.integers(0, 3)) + 1)
        elif what == "expire":
            self.log = []
        elif what == "interrupt":
            self.interrupt()
        elif len(self.log) > 1:
            lost = data.draw(st.integers(1, min(3, len(self.log) - 1)))
            self.fail_over(lost, data, is_quiet=what == "fail over quietly")

    def fail_over(self, lost: int, data: st.DataObject, *, is_quiet: bool) -> None:
        fresh = data.draw(st.integers(0, 3))
        self.log = self.log[: len(self.log) - lost]
        self.first = min(self.first, len(self.log) + 1)
        self.histories[self.epoch].append(self.log)
        if fresh:
            self.append(fresh)
        if is_quiet:
            return
        self.readings.clear()
        self.resync_reading = None
        self.interrupt()

    # What reaches the splice.

    @precondition(lambda self: self.line)
    @rule(times=st.sampled_from([1, 1, 1, 2, 0]))
    def deliver(self, times: int) -> None:
        batch = self.line.popleft()
        for _ in range(times):
            self.delivered = Cursor(batch[0].epoch, batch[1][-1].offset, batch[1][-1].chain)
            held_before, before = self.splice.held, self.splice.buffer.cursor
            admission = self.splice.receive(*batch)
            if self.splice.phase is not Phase.LIVE:
                assert admission is Admission.HELD
                assert self.splice.held == min(held_before + 1, MAX_HELD)
                continue
            if before.epoch not in ("", batch[0].epoch):
                assert admission is Admission.OTHER_EPOCH
            if admission.resync_reason:
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
            assert reason in (ResyncReason.GAP, ResyncReason.DIVERGED, ResyncReason.AHEAD)
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
        # A quiet failover has lost them, and only the next event of the other history shows it.
        holds_lost = not all(
            self.is_in_log(event) for _, events in self.splice._held or () for event in events
        )
        is_complete = self.splice.finish_resync(reading.end, reading.replay)
        if reading.replay is None:
            for follower in self.followers:
                follower.place = reading.end
        assert self.splice.phase is (Phase.LIVE if is_complete else Phase.RESYNCING)
        assert not (is_complete and self.resync_is_late)
        assert not (is_complete and self.splice.held)
        # If the topic is unknown, late publications of its last epoch may be admitted.
        if reading.end == self.end != NOWHERE and not holds_lost:
            assert self.splice.buffer.cursor == self.end

    def is_in_log(self, event: Event | Cursor) -> bool:
        """Return True if ``event``, or the one at a cursor, is in the present history."""
        before = self.log[event.offset - 1 : event.offset] if event.offset else []
        return bool(before) and before[0].chain == event.chain

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
        events = buffer.since(buffer.base.offset)
        assert events is not None
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
        # What a failover has lost is not in the log that a resync reads.
        is_current = self.delivered.epoch == self.epoch and self.is_in_log(self.delivered)
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
