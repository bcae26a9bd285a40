"""A reader applies each event once and in order, over any connection and log (G1 to G3)."""

import json
from collections import deque
from typing import Any

from histories import KEYS, draft, states_after
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core import frames
from semantik_realtime.core.backpressure import conflate
from semantik_realtime.core.event import Cursor, Event, link, with_offset
from semantik_realtime.core.fold import View
from semantik_realtime.core.resume import LogInfo, Reason, plan_sync

TOPIC = "job:1"
REPLAY_LIMIT = 6


class Reading:
    """One log, one server connection, one reader.

    The connection keeps the order of frames, but batches are lost or arrive
    again, and it breaks at any moment. The log is trimmed, begins again in a
    new epoch, and is rewritten by a failover. Every event has a number of its
    own in ``data``, because offsets are used again.
    """

    def __init__(self) -> None:
        self.lifetimes = 1
        self.made = 0
        self.log: list[Event] = []
        self.first = 1
        self.states_at: dict[str, Any] = {str(self.end): {}}
        self.line: deque[dict[str, Any]] = deque()
        self.batches: list[dict[str, Any]] = []
        self.sent = 0
        self.view = View(TOPIC)
        self.applied: list[int] = []
        self.subscribe()

    @property
    def end(self) -> Cursor:
        return self.place(len(self.log))

    def place(self, offset: int) -> Cursor:
        chain = self.log[offset - 1].chain if offset else 0
        return Cursor(f"e{self.lifetimes}", offset, chain)

    # The server's side.

    def append(self, key: str, change: str, terminal: bool) -> None:
        self.made += 1
        given = {"set": {"state": {"n": self.made}}, "drop": {"state": None}, "keep": {}}
        one = draft(key, **given[change], data={"n": self.made}, terminal=terminal)
        chain, offset = link(self.end.chain, one.digest), len(self.log) + 1
        self.log.append(Event(offset, chain, with_offset(one.body, offset)))
        self.states_at[str(self.end)] = states_after(self.log)

    def send_live(self, slow: bool, times: int) -> None:
        """Send all unsent events in one batch, which arrives ``times`` times."""
        events = self.log[self.sent :]
        chosen = conflate(events) if slow else events
        left_out = len(events) - len(chosen)
        member = frames.topic_events(TOPIC, self.sent, self.end, chosen, left_out)
        self.line += [json.loads(frames.events_frame([member]))] * times
        self.sent = len(self.log)

    def append_and_send(self, key: str, change: str, times: int) -> None:
        self.append(key, change, False)
        self.send_live(False, times)

    def send_tops(self) -> None:
        """Send the position of the connection, which lost live events do not reach."""
        self.line.append(json.loads(frames.tops_frame({TOPIC: self.place(self.sent)})))

    def trim(self, keep: int) -> None:
        self.first = max(self.first, len(self.log) - keep + 1)

    def cut(self) -> None:
        self.line.clear()
        self.batches.clear()
        self.view.interrupt()
        self.subscribe()

    def expire(self) -> None:
        self.lifetimes += 1
        self.log, self.first = [], 1
        self.states_at[str(self.end)] = {}
        self.cut()

    def fail_over(self, lost: int, fresh: int) -> None:
        """A replica that lags takes over: in the same epoch, offsets are used again."""
        self.rewrite(lost, fresh)
        self.cut()

    def fail_over_quietly(self, lost: int, fresh: int) -> None:
        """The same, on a connection that does not break: the server notices it by the chain."""
        self.rewrite(lost, fresh)
        self.send_snapshot(Reason.DIVERGED)

    def rewrite(self, lost: int, fresh: int) -> None:
        self.log = self.log[: max(0, len(self.log) - lost)]
        self.first = min(self.first, len(self.log) + 1)
        for key in KEYS[:fresh]:
            self.append(key, "set", False)

    def subscribe(self) -> None:
        asked = None if self.view.cursor is None else Cursor.parse(self.view.cursor)
        end = self.end
        there = None
        if asked is not None and max(1, self.first) <= asked.offset <= end.offset:
            there = self.log[asked.offset - 1].chain
        info = LogInfo(end.epoch, end.offset, end.chain, self.first)
        reason = plan_sync(asked, info, there, REPLAY_LIMIT)
        if reason is None:
            assert asked is not None
            text = frames.replay_frame(TOPIC, asked, end, self.log[asked.offset :])
            self.line.append(json.loads(text))
            self.sent = end.offset
        else:
            self.send_snapshot(reason)

    def send_snapshot(self, reason: Reason) -> None:
        end = self.end
        states = {k: json.dumps(v).encode() for k, v in self.states_at[str(end)].items()}
        self.line.append(json.loads(frames.snapshot_frame(TOPIC, reason, end, states)))
        self.sent = end.offset

    # The reader's side.

    def deliver(self, some: int) -> None:
        while self.line and some:
            some -= 1
            self.receive(self.line.popleft())

    def repeat(self, which: int) -> None:
        """An old batch of the same history arrives again, while the connection is open."""
        if self.batches:
            self.check_for_gap(self.view.batch(self.batches[which % len(self.batches)]))

    def send_record(self, key: str) -> None:
        """The backend is away, and the host's record is sent."""
        self.line.append({"op": "provisional", "states": {key: {"n": "the host's"}}})

    def restore(self) -> None:
        self.line.append({"op": "restored"})

    def receive(self, frame: dict[str, Any]) -> None:
        if frame["op"] == "provisional":
            self.view.provisional(frame["states"])
        elif frame["op"] == "restored":
            self.view.restored()
        elif frame["op"] == "sync":
            if frame["mode"] == "snapshot":
                self.batches.clear()
            self.check_for_gap(self.view.sync(frame), applied=frame["mode"] == "replay")
        elif frame["op"] == "events":
            self.batches.append(frame["topics"][TOPIC])
            self.check_for_gap(self.view.batch(frame["topics"][TOPIC]))
        elif self.view.behind(frame["topics"][TOPIC]):
            self.subscribe()

    def check_for_gap(self, events: list[dict[str, Any]] | None, applied: bool = True) -> None:
        if events is None:
            self.subscribe()
        elif applied:
            self.applied += [event["data"]["n"] for event in events]

    def check(self) -> None:
        assert self.applied == sorted(set(self.applied)), "twice, or out of order"
        if self.view.cursor is not None:
            assert self.view.folded == self.states_at[self.view.cursor], "a gap"
            assert self.view.offset == Cursor.parse(self.view.cursor).offset

    def settle(self) -> None:
        self.send_live(slow=False, times=1)
        self.send_tops()
        self.restore()
        self.deliver(some=10**6)


appends = st.tuples(
    st.just("append"),
    st.sampled_from(KEYS),
    st.sampled_from(["keep", "set", "set", "drop"]),
    st.sampled_from([False, False, True]),
)
appends_and_sends = st.tuples(
    st.just("append_and_send"),
    st.sampled_from(KEYS),
    st.sampled_from(["keep", "set"]),
    st.sampled_from([1, 1, 0]),
)
sends = st.tuples(st.just("send_live"), st.booleans(), st.sampled_from([1, 1, 2, 0]))
deliveries = st.tuples(st.just("deliver"), st.integers(1, 5))
repeats = st.tuples(st.just("repeat"), st.integers(0, 9))
troubles = st.sampled_from(
    [
        ("cut",),
        ("cut",),
        ("expire",),
        ("fail_over", 1, 0),
        ("fail_over", 1, 1),
        ("fail_over", 2, 3),
        ("fail_over_quietly", 1, 1),
        ("fail_over_quietly", 2, 3),
        ("trim", 0),
        ("trim", 3),
    ]
)
records = st.tuples(st.just("send_record"), st.sampled_from(KEYS))
steps = st.one_of(
    records,
    st.just(("restore",)),
    appends,
    sends,
    appends_and_sends,
    appends_and_sends,
    appends_and_sends,
    deliveries,
    deliveries,
    repeats,
    st.just(("send_tops",)),
    troubles,
)


@given(st.lists(steps, min_size=25, max_size=80))
def test_a_reader_applies_each_event_once_in_order_without_a_gap_and_reaches_the_end(steps):
    reading = Reading()
    for name, *arguments in steps:
        getattr(reading, name)(*arguments)
        reading.check()
    reading.settle()
    reading.check()
    assert reading.view.cursor == str(reading.end)
    assert reading.view.states == states_after(reading.log)
