"""A channel with its I/O passed in: readings and live batches in any order, and no server."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections import Counter
from typing import Any

import pytest
from scripted_channel import TOPIC, Client, Log, ScriptedIO

from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.fold import View
from semantik_realtime.core.splice import Batch, ResyncReason
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Snapshot


class Run:
    """One random history: a log, a channel, three clients, and batches on their way."""

    def __init__(self) -> None:
        self.log = Log()
        self.io = ScriptedIO(self.log)
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
        await steps()
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

    def do_read(self, number: int) -> None:
        if self.io.readings:
            self.io.readings[number % len(self.io.readings)].make()

    def do_return(self, number: int) -> None:
        if self.io.readings:
            self.io.readings.pop(number % len(self.io.readings)).finish()

    def do_fail(self, number: int) -> None:
        if self.io.readings:
            reading = self.io.readings.pop(number % len(self.io.readings))
            reading.answer.set_exception(BackendUnavailable("away"))

    def do_join(self, number: int) -> None:
        index = number % 3
        client, task = self.clients[index], self.joining.get(index)
        if task is not None and (client.subscription is not None or not task.done()):
            return
        if task is not None and number % 4 == 1:
            client.begin_anew(View(TOPIC))
        elif task is not None and number % 4 == 2:
            # Another server has served it in between.
            client.begin_anew(self.log.view_at(number * len(self.log.events) // 12))
        self.joining[index] = asyncio.create_task(client.join())

    def do_leave(self, number: int) -> None:
        client = self.clients[number % 3]
        if client.subscription is not None:
            client.leave()

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
        """Deliver and return everything, then check what holds with and without another event."""
        await self.settle()
        assert all(task.done() for task in self.joining.values()), "a client waits for an event"
        if not self.is_tail_lost:
            assert self.channel.cursor == self.log.top
        self.check_clients()
        self.do_append(0)
        await self.settle()
        assert self.channel.cursor == self.log.top
        assert self.channel.held == 0
        assert not self.io.tasks
        self.check_clients()
        for client in self.following():
            assert client.view.folded == self.log.states()

    def following(self) -> list[Client]:
        return [client for client in self.clients if client.subscription is not None]

    def check_clients(self) -> None:
        """Every client that follows is where the channel is."""
        place = self.channel.cursor
        for client in self.following():
            assert client.view.synced
            assert client.view.cursor == (str(place) if place.epoch else None)

    async def settle(self) -> None:
        """Deliver, return and collect until nothing moves, for a bounded number of rounds."""
        for _ in range(40):
            self.do_deliver(2)
            while self.io.readings:
                self.io.readings.pop().finish()
            await self.step()
            for client in self.clients:
                client.collect()
            if not (self.io.readings or self.in_flight):
                return


RUNS = 500
LOSSLESS = [
    *["append"] * 4,
    *["deliver", "collect", "join", "read", "return"] * 3,
    *["interrupt", "fail", "leave", "leave"],
]
LOSSY = [*LOSSLESS, "lose", "lose", "lose", "lose", "break", "forget", "lose_last"]


@pytest.mark.parametrize("actions", [LOSSLESS, LOSSY], ids=["lossless", "lossy"])
async def test_each_client_has_every_event_once_in_order_or_a_snapshot_and_ends_at_the_log(
    actions: list[str],
) -> None:
    """Random histories. A failure names its seed."""
    reasons: Counter[ResyncReason] = Counter()
    for seed in range(RUNS):
        rng = random.Random(seed)
        run = Run()
        try:
            if first_events := rng.randrange(6):
                run.log.append(first_events)
            run.do_join(0)
            for _ in range(rng.randrange(5, 60)):
                await run.act(rng.choice(actions), rng.randrange(12))
            await run.finish()
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        reasons.update(run.io.resyncs)
    assert reasons[ResyncReason.INTERRUPTED] > RUNS / 4
    assert reasons[ResyncReason.AHEAD] > RUNS / 20
    if actions is LOSSLESS:
        # Live batches that arrive during a reading are held, so none is read again.
        assert reasons[ResyncReason.GAP] == 0
    else:
        assert reasons[ResyncReason.GAP] > RUNS / 20


async def joined(count: int, log: Log, io: ScriptedIO) -> list[Client]:
    """Clients that joined one channel together."""
    channel = io.channel()
    clients = [Client(log, channel) for _ in range(count)]
    joining = [asyncio.create_task(client.join()) for client in clients]
    while not all(task.done() for task in joining):
        await asyncio.sleep(0)
        while io.readings:
            io.readings.pop().finish()
    return clients


async def steps() -> None:
    """Let every task run until it waits for the test."""
    for _ in range(12):
        await asyncio.sleep(0)


async def test_a_replay_that_is_ahead_of_the_live_events_reaches_the_other_clients() -> None:
    log = Log()
    io = ScriptedIO(log)
    log.append(5)
    [client] = await joined(1, log, io)
    client.collect()
    log.append(2)
    late = Client(log, client.channel)
    late.view = log.view_at(3)
    joining = asyncio.create_task(late.join())
    await steps()
    io.readings.pop().finish()
    await joining
    client.collect()
    assert [one.view.cursor for one in (client, late)] == [str(log.cursor)] * 2
    assert (len(client.shown), len(late.shown)) == (2, 4)
    assert io.resyncs == []


async def test_an_event_of_a_rewritten_log_reaches_no_client_though_its_offset_follows() -> None:
    """A replica is promoted, and no break of the subscription shows it."""
    log = Log()
    io = ScriptedIO(log)
    log.append(12)
    [client] = await joined(1, log, io)
    client.collect()
    log.lose_last(2)
    log.append(2)
    # Its predecessor has the offset 12, as the last event of the client.
    client.channel.receive(*log.append(1))
    client.collect()
    assert client.shown == []
    assert io.resyncs == ["diverged"]
    await steps()
    [reading] = io.readings
    reading.finish()
    await steps()
    client.collect()
    assert client.view.reason == "diverged"
    assert client.view.folded == log.states()
    assert client.view.cursor == str(log.cursor)


async def test_a_resync_reads_again_after_a_gap_in_what_it_held() -> None:
    log = Log()
    io = ScriptedIO(log)
    log.append(5)
    [client] = await joined(1, log, io)
    client.channel.resync(ResyncReason.INTERRUPTED)
    await steps()
    reading = io.readings.pop()
    reading.make()
    log.append(1)
    client.channel.receive(*log.append(1))
    reading.finish()
    await steps()
    assert client.channel.resyncing is not None
    [again] = io.readings
    again.finish()
    io.readings.clear()
    await steps()
    assert client.channel.resyncing is None
    client.collect()
    assert len(client.shown) == 2
    client.channel.receive(*log.append(1))
    client.collect()
    assert client.view.cursor == str(log.cursor)
    assert io.resyncs == [ResyncReason.INTERRUPTED]


async def test_a_client_that_joins_during_a_resync_waits_for_it_and_reads_once_more() -> None:
    log = Log()
    io = ScriptedIO(log)
    log.append(5)
    [client] = await joined(1, log, io)
    log.forget()
    log.append(2)
    client.channel.resync(ResyncReason.INTERRUPTED)
    late = Client(log, client.channel)
    joining = asyncio.create_task(late.join())
    await steps()
    resync, reading = io.readings
    io.readings.clear()
    reading.finish()
    await steps()
    assert io.readings == []
    log.append(1)
    resync.finish()
    await steps()
    [again] = io.readings
    again.finish()
    await joining
    assert late.view.cursor == str(log.cursor)


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
    clients = await joined(4, log, ScriptedIO(log))
    assert len(encoded) == 1
    assert all(client.syncs == clients[0].syncs for client in clients)
    assert [client.view.folded for client in clients] == [log.states()] * 4


async def test_a_snapshot_of_a_resync_is_encoded_once_for_clients_at_different_cursors(
    encoded: list[str],
) -> None:
    log = Log()
    io = ScriptedIO(log)
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
    reading.finish()
    while channel.resyncing is not None:
        await asyncio.sleep(0)
    for client in clients:
        client.collect()
    assert len(encoded) == 1
    assert len({id(client.syncs[-1]) for client in clients}) == 1
    assert [client.view.folded for client in clients] == [log.states()] * 3
    assert {client.view.reason for client in clients} == {"epoch"}


async def test_equal_subscriptions_share_an_answer_and_different_replays_do_not() -> None:
    log = Log()
    io = ScriptedIO(log)
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


async def test_a_crowd_that_returns_to_one_position_gets_one_replay_encoded_once() -> None:
    log = Log()
    io = ScriptedIO(log)
    log.append(3)
    [first] = await joined(1, log, io)
    channel = first.channel
    for _ in range(3):
        channel.receive(*log.append(2))
    crowd = [Client(log, channel) for _ in range(3)]
    for client in crowd:
        client.view = log.view_at(5)
        await client.join()
    assert len({id(client.syncs[0]) for client in crowd}) == 1
    channel.receive(*log.append(1))
    late = Client(log, channel)
    late.view = log.view_at(5)
    await late.join()
    assert late.syncs[0] is not crowd[0].syncs[0]
    for client in [*crowd, late]:
        client.collect()
        assert client.view.folded == log.states()


async def test_an_answer_is_not_kept_for_longer_than_a_crowd_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("semantik_realtime.web.hub.channel.SYNC_SECONDS", 0.01)
    log = Log()
    io = ScriptedIO(log)
    log.append(3)
    [client] = await joined(1, log, io)
    answer = weakref.ref(client.syncs.pop())
    async with asyncio.timeout(5):
        while answer() is not None:
            gc.collect()
            await asyncio.sleep(0.01)


async def test_a_channel_ends_after_its_last_watcher_and_cancels_its_resync() -> None:
    run = Run()
    channel = run.channel
    channel.reserve()
    channel.resync(ResyncReason.INTERRUPTED)
    resync = channel.resyncing
    assert resync is not None
    await asyncio.sleep(0)
    channel.release()
    assert run.io.ended == []
    channel.release()
    assert run.io.ended == [channel]
    await asyncio.wait([resync], timeout=1)
    assert resync.cancelled()
