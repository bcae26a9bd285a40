"""A channel with its I/O passed in: readings and live batches in any order, and no server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantik_realtime.core import frames
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Cursor, Event, link, with_offset
from semantik_realtime.core.fold import View
from semantik_realtime.core.resume import LogInfo, plan_sync
from semantik_realtime.core.splice import NOWHERE, Batch, ResyncReason
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.hub.channel import Channel, ChannelIO
from semantik_realtime.web.hub.subscription import Subscription
from semantik_realtime.web.wires.wire import Sync

TOPIC = "job:1"
KEYS = ("a", "b", "c")
RETAINED_EVENTS = 12


class Log:
    """A topic's log as a backend keeps it: `append` writes, `read` is one atomic reading."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        """All events of the present history, also those that are no longer retained."""
        self.written: dict[tuple[str, int, int], dict[str, Any]] = {}
        """Every event that was ever appended, by epoch, offset and chain."""
        self.is_known = False
        """Whether anything was appended: before that the backend does not know the topic."""
        self._epochs = 1
        self._number = 0

    @property
    def epoch(self) -> str:
        return f"e{self._epochs}"

    @property
    def cursor(self) -> Cursor:
        if not self.events:
            return Cursor(self.epoch, 0, 0)
        return Cursor(self.epoch, self.events[-1].offset, self.events[-1].chain)

    @property
    def top(self) -> Cursor:
        return self.cursor if self.is_known else NOWHERE

    def append(self, count: int) -> Batch:
        """Append ``count`` events, each with a state; return them as a live batch."""
        self.is_known = True
        prev, batch = self.cursor.offset, []
        for _ in range(count):
            self._number += 1
            key = KEYS[self._number % len(KEYS)]
            state = {"n": self._number}
            [draft] = make_drafts({TOPIC: None}, "step", "", key, state=state)
            offset, chain = self.cursor.offset + 1, link(self.cursor.chain, draft.digest)
            event = Event(offset, chain, with_offset(draft.body, offset))
            self.events.append(event)
            batch.append(event)
            self.written[self.epoch, offset, chain] = json.loads(event.json)
        return self.epoch, prev, batch

    def forget(self) -> None:
        """Lose everything: the next event begins another epoch."""
        self.events.clear()
        self._epochs += 1
        self.is_known = False

    def lose_last(self, count: int) -> None:
        """Lose the last events, as a replica does that is promoted too early: same epoch."""
        del self.events[max(0, len(self.events) - count) :]

    def states(self) -> dict[str, Any]:
        events = [json.loads(event.json) for event in self.events]
        return {event["key"]: event["state"] for event in events}

    def read(self, asked: Cursor | None) -> Snapshot:
        if not self.is_known:
            return Snapshot(None)
        retained = self.events[-RETAINED_EVENTS:]
        first = retained[0].offset if retained else 1
        chain_there = None
        if asked is not None and first <= asked.offset <= self.cursor.offset:
            chain_there = self.events[asked.offset - 1].chain
        log = LogInfo(self.epoch, self.cursor.offset, self.cursor.chain, first)
        reason = plan_sync(asked, log, chain_there)
        if reason is None:
            assert asked is not None
            events = [event for event in self.events if event.offset > asked.offset]
            return Snapshot(self.cursor, None, None, {}, events)
        states = {json.loads(event.json)["key"]: event.json for event in self.events}
        return Snapshot(self.cursor, None, reason, states)


class Reading(NamedTuple):
    """A call of the backend's `snapshot` that the test answers."""

    asked: Cursor | None
    answer: asyncio.Future[Snapshot]


class ScriptedIO:
    """What a channel gets from the process around it; the test decides when readings end."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        """Readings that are not answered yet."""
        self.resyncs: list[ResyncReason] = []
        self.tasks: set[asyncio.Task[Any]] = set()

    def channel(self) -> Channel:
        io = ChannelIO(self.subscribe, self.read, self.pause, self.spawn, self.resyncs.append)
        return Channel(TOPIC, Limits(), io)

    async def subscribe(self, topic: str) -> None:
        await asyncio.sleep(0)

    async def read(self, topic: str, asked: Cursor | None, history: int) -> Snapshot:
        reading = Reading(asked, asyncio.get_running_loop().create_future())
        self.readings.append(reading)
        return await reading.answer

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(0)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        running = [task.get_name() for task in self.tasks if not task.done()]
        assert name != "resync" or name not in running, "two resyncs at the same time"
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class Client:
    """A `Watcher` that collects what a connection collects, and reads it as a client does.

    Like a connection it collects only after the channel has woken it. Each
    event is checked on arrival: it must follow the position of the view and be
    one that the log appended.
    """

    def __init__(self, log: Log, channel: Channel) -> None:
        self.log = log
        self.channel = channel
        self.view = View(TOPIC)
        self.subscription: Subscription | None = None
        """None: not joined yet, or left."""
        self.syncs: list[Sync] = []
        self.applied = 0
        """How many events came live or as a replay."""
        self.allowed: tuple[str, ...] = ()
        self.wire_name = "test"
        self.subscriptions = 1
        self.outbox_bytes = 0
        self._is_awake = False

    async def join(self) -> None:
        """Follow from the client's cursor, again after each failure, as a connection does."""
        asked = Cursor.parse(self.view.cursor) if self.view.cursor else None
        while True:
            self.channel.add_user()
            try:
                await self.channel.subscribed()
                followed = await self.channel.follow(self, asked, 0)
                break
            except BackendError:
                self.channel.remove_user()
        self.subscription, snapshot = followed
        if snapshot.cursor is None:
            self.subscription.restart(snapshot, asked)
        else:
            self._receive_sync(self.channel.answer(asked, snapshot))
            self.wake(self.subscription)

    def leave(self) -> None:
        assert self.subscription is not None
        self.channel.leave(self.subscription)
        self.channel.remove_user()
        self.subscription = None
        self._is_awake = self.view.synced = False

    def collect(self) -> None:
        """Receive what the subscription has, if the channel has woken the client."""
        if self.subscription is None or not self._is_awake:
            return
        self._is_awake = False
        pending = self.subscription.collect_pending()
        if pending is not None:
            before, snapshot = pending
            if snapshot.cursor is None:
                # The host has no record either.
                assert self.subscription.settle(snapshot)
            self._receive_sync(self.channel.answer(before, snapshot))
        outgoing = self.subscription.collect_events()
        assert outgoing is not None, "evicted"
        if outgoing.events:
            [batch] = json.loads(outgoing.frame)["topics"].values()
            self._receive_events(batch)

    def _receive_sync(self, sync: Sync) -> None:
        self.syncs.append(sync)
        frame = json.loads(sync.frame)
        if frame["mode"] == "snapshot":
            self.view.sync(frame)
        else:
            self.view.synced = True
            self._receive_events(frame)

    def _receive_events(self, batch: Mapping[str, Any]) -> None:
        before = self.view.offset
        assert batch["prev"] == before, "a gap or a repetition"
        events = self.view.batch(batch)
        assert events is not None
        offsets = [event["offset"] for event in events]
        assert offsets == list(range(before + 1, before + 1 + len(batch["events"])))
        assert self.view.offset == before + len(offsets)
        if events:
            place = Cursor.parse(self.view.cursor or "")
            assert self.log.written[place.epoch, place.offset, place.chain] == events[-1]
        self.applied += len(events)

    def wake(self, subscription: Subscription) -> None:
        self._is_awake = True

    def gone(self, subscription: Subscription) -> None:
        raise AssertionError("nothing was deleted")

    def tick(self, now: float) -> None: ...

    def degraded(self, since: str) -> None: ...

    def restored(self) -> None: ...

    def provisional(self, topic: str, epoch: str, source: str, states: Any) -> None: ...

    def drain(self) -> None: ...


class Run:
    """One random history: a log, a channel, three clients, and batches on their way."""

    def __init__(self) -> None:
        self.log = Log()
        self.io = ScriptedIO()
        self.channel = self.io.channel()
        self.clients = [Client(self.log, self.channel) for _ in range(3)]
        self.joining: dict[int, asyncio.Task[None]] = {}
        self.in_flight: list[Batch] = []
        """Published, not yet received by the channel; pub/sub keeps the order."""
        self.is_tail_lost = False
        """Whether the newest batch was lost, so that only another event shows the loss."""

    async def act(self, action: str, number: int) -> None:
        getattr(self, f"do_{action}")(number)
        await self.step()

    async def step(self) -> None:
        """Let every task run until it waits for the test."""
        for _ in range(12):
            await asyncio.sleep(0)
        for task in self.joining.values():
            if task.done():
                task.result()

    def do_append(self, number: int) -> None:
        self.in_flight.append(self.log.append(1 + number % 4))
        self.is_tail_lost = False

    def do_deliver(self, number: int) -> None:
        for batch in self.in_flight[: 1 + number % 3]:
            self.channel.receive(*batch)
            del self.in_flight[0]

    def do_answer(self, number: int) -> None:
        """Answer a reading; if ``number`` is odd, with what was read before the last events."""
        if self.io.readings:
            reading = self.io.readings.pop(number % len(self.io.readings))
            snapshot = self.log.read(reading.asked)
            if number % 2:
                self.do_append(number)
                self.do_deliver(number)
            reading.answer.set_result(snapshot)

    def do_fail(self, number: int) -> None:
        if self.io.readings:
            reading = self.io.readings.pop(number % len(self.io.readings))
            reading.answer.set_exception(BackendUnavailable("away"))

    def do_join(self, number: int) -> None:
        index = number % 3
        if index not in self.joining:
            self.joining[index] = asyncio.create_task(self.clients[index].join())

    def do_rejoin(self, number: int) -> None:
        # The first client stays, so that the channel is not dropped.
        index = 1 + number % 2
        if self.clients[index].subscription is not None:
            self.clients[index].leave()
            self.joining[index] = asyncio.create_task(self.clients[index].join())

    def do_collect(self, number: int) -> None:
        self.clients[number % 3].collect()

    def do_interrupt(self, number: int) -> None:
        """Break the subscription, without a loss."""
        self.channel.resync(ResyncReason.INTERRUPTED)

    # What loses events.

    def do_lose(self, number: int) -> None:
        lost = number % 3
        self.is_tail_lost |= lost == len(self.in_flight) - 1
        del self.in_flight[lost : lost + 1]

    def do_break(self, number: int) -> None:
        """Break the subscription, and lose what is on its way."""
        self.in_flight.clear()
        # A reading that is on its way may have been made before.
        self.is_tail_lost = True
        self.channel.resync(ResyncReason.INTERRUPTED)

    def do_forget(self, number: int) -> None:
        if number % 3 == 0:
            self.log.forget()
            self.do_break(number)

    def do_lose_last(self, number: int) -> None:
        # A reading of the lost history that is on its way would hide the loss until the next look
        # at the tops, which is not the channel's.
        if number % 3 == 0 and not self.io.readings:
            self.log.lose_last(1 + number % 4)
            self.do_break(number)

    async def finish(self) -> None:
        """Deliver and answer everything, then check what holds with and without another event."""
        for index in range(3):
            self.do_join(index)
        await self.settle()
        assert all(task.done() for task in self.joining.values()), "a client waits for an event"
        if not self.is_tail_lost:
            assert self.channel.cursor == self.log.top
        self.do_append(0)
        await self.settle()
        assert self.channel.cursor == self.log.top
        assert self.channel.held == 0
        assert not self.io.tasks

    async def settle(self) -> None:
        """Deliver, answer and collect until nothing moves, for a bounded number of rounds."""
        for _ in range(40):
            self.do_deliver(2)
            while self.io.readings:
                reading = self.io.readings.pop()
                reading.answer.set_result(self.log.read(reading.asked))
            await self.step()
            for client in self.clients:
                client.collect()
            if not (self.io.readings or self.in_flight):
                return


LOSSLESS = [*["append", "deliver", "collect", "answer", "join"] * 3, "interrupt", "fail", "rejoin"]
LOSSY = [*LOSSLESS, "lose", "break", "forget", "lose_last"]


@pytest.mark.parametrize("actions", [LOSSLESS, LOSSY], ids=["lossless", "lossy"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_each_client_has_every_event_once_in_order_or_a_snapshot_and_ends_at_the_log(
    actions: list[str], data: st.DataObject
) -> None:
    first_events = data.draw(st.integers(0, 6))
    steps = st.tuples(st.sampled_from(actions), st.integers(0, 11))
    script = data.draw(st.lists(steps, min_size=10, max_size=60))

    async def run() -> Run:
        made = Run()
        if first_events:
            made.log.append(first_events)
        for action, number in script:
            await made.act(action, number)
        await made.finish()
        return made

    made = asyncio.run(run())
    for client in made.clients:
        assert client.view.synced
        assert client.view.cursor == str(made.log.cursor)
        assert client.view.folded == made.log.states()
    if actions is LOSSLESS:
        # What arrived during a reading was held, so nothing had to be read again for it.
        assert ResyncReason.GAP not in made.io.resyncs


async def joined(count: int, log: Log, io: ScriptedIO) -> list[Client]:
    """Clients that joined one channel together."""
    channel = io.channel()
    clients = [Client(log, channel) for _ in range(count)]
    joining = [asyncio.create_task(client.join()) for client in clients]
    while not all(task.done() for task in joining):
        await asyncio.sleep(0)
        while io.readings:
            reading = io.readings.pop()
            reading.answer.set_result(log.read(reading.asked))
    return clients


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The snapshots that were encoded, as frames of the native wire."""
    made: list[str] = []
    encode = frames.snapshot_frame

    def record(*args: Any) -> str:
        made.append(encode(*args))
        return made[-1]

    monkeypatch.setattr(frames, "snapshot_frame", record)
    return made


async def test_a_snapshot_is_encoded_once_for_all_clients_that_join_together(
    encoded: list[str],
) -> None:
    log = Log()
    log.append(5)
    clients = await joined(4, log, ScriptedIO())
    assert len(encoded) == 1
    assert all(client.syncs == clients[0].syncs for client in clients)
    assert [client.view.folded for client in clients] == [log.states()] * 4


async def test_a_snapshot_of_a_resync_is_encoded_once_for_clients_at_different_cursors(
    encoded: list[str],
) -> None:
    log, io = Log(), ScriptedIO()
    log.append(5)
    clients = await joined(3, log, io)
    channel = clients[0].channel
    for client in clients:
        channel.receive(*log.append(1))
        client.collect()
    assert len({client.view.cursor for client in clients}) == 3
    encoded.clear()
    log.forget()
    log.append(2)
    channel.resync(ResyncReason.INTERRUPTED)
    await asyncio.sleep(0)
    [reading] = io.readings
    reading.answer.set_result(log.read(reading.asked))
    while channel.resyncing is not None:
        await asyncio.sleep(0)
    for client in clients:
        client.collect()
    assert len(encoded) == 1
    assert len({id(client.syncs[-1]) for client in clients}) == 1
    assert [client.view.folded for client in clients] == [log.states()] * 3
    assert {client.view.reason for client in clients} == {"epoch"}


async def test_equal_subscriptions_share_an_answer_and_different_replays_do_not() -> None:
    log, io = Log(), ScriptedIO()
    log.append(3)
    early = log.cursor
    log.append(2)
    channel = io.channel()
    replay = log.read(early)
    assert channel.answer(early, replay) is channel.answer(early, replay)
    other = Cursor(log.epoch, 4, log.events[3].chain)
    assert channel.answer(early, replay) is not channel.answer(other, log.read(other))
    unknown = Snapshot(None)
    # Without a log the reason depends on the client's cursor and on the host's record.
    for asked, recalled, reason in (
        (None, None, "new"),
        (early, None, "epoch"),
        (early, {"a": b"{}"}, "recalled"),
    ):
        answer = channel.answer(asked, unknown, recalled)
        assert answer is channel.answer(asked, unknown, recalled)
        assert answer.reason == reason
