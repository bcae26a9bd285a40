"""Every order in which a few things can happen to one topic, up to a depth, and not a sample.

Two publishers, two clients, two cuts, one trimming of the log, and one failover, that breaks no
connection: the real channel, splice and reader, with their I/O passed in. What can happen next is
tried from every state that can be reached, each state once. Then everything is delivered, and the
clients must be where the log is, without another event.

``INTERLEAVINGS=12 pytest tests/web/test_interleavings.py -s`` goes deeper than the default.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Hashable

import pytest
from scripted_channel import Client, Log, ScriptedIO

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.splice import Batch, Phase, ResyncReason

DEPTH = int(os.environ.get("INTERLEAVINGS", "5"))
MAX_STATES = 400_000
PUBLISHES = 4
STEPS = 12
"""Rounds of the loop until every task waits for the test."""

Path = tuple[str, ...]
NOTHING: Path = ()
WATCHED: Path = ("publish", "join 0", "join 1", "read 0", "return 0", "deliver", "collect 0")
"""One event, and both clients have it."""


class World:
    """One topic after some actions; it is made again for every path."""

    def __init__(self) -> None:
        self.log = Log()
        self.io = ScriptedIO(self.log)
        self.channel = self.io.channel()
        self.clients = [Client(self.log, self.channel) for _ in range(2)]
        self.joining: list[asyncio.Task[None] | None] = [None, None]
        self.in_flight: deque[Batch] = deque()
        # What can happen once, or a few times.
        self.left = {"publish": PUBLISHES, "cut": 2, "trim": 1, "failover": 1, "leave": 1, "top": 1}

    def enabled(self) -> list[str]:
        """Return what can happen next."""
        found = [name for name in ("publish", "cut") if self.left[name]]
        if self.left["trim"] and len(self.log.events) - self.log.trimmed > 1:
            found.append("trim")
        if self.left["failover"] and self.log.events:
            found.append("failover")
        if self.left["top"]:
            found.append("top")
        if self.in_flight:
            found.append("deliver")
        for index, reading in enumerate(self.io.readings[:2]):
            found += [f"return {index}"] if reading.is_made else [f"read {index}"]
        for index, client in enumerate(self.clients):
            if self.joining[index] is None:
                found.append(f"join {index}")
            elif client.subscription is not None:
                if client.is_awake:
                    found.append(f"collect {index}")
                if index == 0 and self.left["leave"]:
                    found.append("leave 0")
        return found

    def act(self, action: str) -> None:
        name, _, index = action.partition(" ")
        if name in self.left:
            self.left[name] -= 1
        getattr(self, f"do_{name}")(int(index or 0))

    def do_publish(self, _: int) -> None:
        self.in_flight.append(self.log.append(1))

    def do_deliver(self, _: int) -> None:
        self.channel.receive(*self.in_flight.popleft())

    def do_cut(self, _: int) -> None:
        """The subscription breaks with what is on its way, and works again."""
        self.in_flight.clear()
        self.channel.resync(ResyncReason.INTERRUPTED)

    def do_trim(self, _: int) -> None:
        self.log.trimmed = len(self.log.events) - 1

    def do_failover(self, _: int) -> None:
        """A replica without the newest event becomes the master; no connection breaks."""
        self.log.lose_last(1)

    def do_top(self, _: int) -> None:
        """As `Hub.check_tops` does."""
        if self.channel.phase is Phase.LIVE and self.channel.cursor != self.log.top:
            self.channel.resync(ResyncReason.TAIL)

    def do_read(self, index: int) -> None:
        self.io.readings[index].make()

    def do_return(self, index: int) -> None:
        self.io.readings.pop(index).finish()

    def do_join(self, index: int) -> None:
        self.joining[index] = asyncio.create_task(self.clients[index].join())

    def do_leave(self, index: int) -> None:
        self.clients[index].leave()
        self.joining[index] = None

    def do_collect(self, index: int) -> None:
        self.clients[index].collect()

    def state(self) -> Hashable:
        """Return all that can be seen of this world; two that are equal go on alike."""
        buffer = self.channel._splice.buffer
        return (
            tuple(event.chain for event in self.log.events),
            self.log.trimmed,
            tuple(_batch(batch) for batch in self.in_flight),
            (self.channel.phase, self.channel.cursor, buffer.base, len(buffer)),
            tuple(_batch(batch) for batch in self.channel._splice._held or ()),
            self.channel._splice._reads_again,
            tuple(reading.seen() for reading in self.io.readings),
            tuple(sorted(task.get_name() for task in self.io.tasks)),
            tuple(
                (
                    client.view.cursor,
                    client.view.synced,
                    client.is_awake,
                    task is not None and task.done(),
                    None
                    if client.subscription is None
                    else (client.subscription.cursor, client.subscription.pending is not None),
                )
                for client, task in zip(self.clients, self.joining, strict=True)
            ),
            tuple(self.left.values()),
        )

    async def settle(self) -> None:
        """Deliver, return and collect everything; then check what must hold at rest."""
        for _ in range(2):
            for _ in range(40):
                while self.in_flight:
                    self.do_deliver(0)
                while self.io.readings:
                    self.do_return(0)
                await run_tasks()
                for client in self.clients:
                    client.collect()
                if not (self.in_flight or self.io.readings):
                    break
            # The server looks at the tops every few seconds.
            self.do_top(0)
            await run_tasks()
        assert not self.io.readings
        assert self.channel.phase is Phase.HOLDING or self.channel.cursor == self.log.top
        assert not self.io.tasks
        for client, task in zip(self.clients, self.joining, strict=True):
            assert task is None or task.done()
            if client.subscription is not None:
                assert client.view.synced
                assert client.view.folded == self.log.states()
                assert Cursor.parse(client.view.cursor or "") == self.log.top or not self.log.events


def _batch(batch: Batch) -> Hashable:
    prev, events = batch
    return prev, tuple(event.chain for event in events)


async def run_tasks() -> None:
    for _ in range(STEPS):
        await asyncio.sleep(0)


async def world_after(path: Path) -> World:
    world = World()
    for action in path:
        world.act(action)
        await run_tasks()
        for task in world.joining:
            if task is not None and task.done():
                task.result()
    return world


async def end(world: World) -> None:
    """End the tasks of a world that is not looked at any more."""
    tasks = {*world.io.tasks, *(task for task in world.joining if task is not None)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("start", [NOTHING, WATCHED], ids=["nothing", "watched"])
async def test_no_order_of_events_loses_doubles_or_disorders_one(start: Path) -> None:
    """Each client checks on arrival that an event follows its position and was written there."""
    began = time.monotonic()
    seen: set[Hashable] = set()
    frontier: list[Path] = [start]
    for depth in range(DEPTH + 1):
        following: list[Path] = []
        for path in frontier:
            try:
                world = await world_after(path)
                state = world.state()
                if state in seen:
                    await end(world)
                    continue
                seen.add(state)
                following += [(*path, action) for action in world.enabled()]
                await world.settle()
            except AssertionError as error:
                error.add_note(f"after {', '.join(path)}")
                raise
            await end(world)
        print(f"depth {depth}: {len(seen):,} states, {time.monotonic() - began:.1f} s")
        frontier = following
        assert len(seen) < MAX_STATES, f"too many states at depth {depth}"
    assert len(seen) > 20 * DEPTH
