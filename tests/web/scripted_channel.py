"""What a channel has around it, without server or sockets: a log, readings and clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Hashable, Mapping
from typing import Any

from semantik_realtime.core.backpressure import Limits
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Cursor, Event, link, with_offset
from semantik_realtime.core.fold import View
from semantik_realtime.core.resume import LogInfo, plan_sync
from semantik_realtime.core.splice import NOWHERE, Batch, ResyncReason
from semantik_realtime.errors import BackendError
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
        self.trimmed = 0
        """How many of `events` are not retained, beside those before the last `RETAINED_EVENTS`."""
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
        prev, batch = self.cursor, []
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
        return prev, batch

    def forget(self) -> None:
        """Lose everything: the next event begins another epoch."""
        self.events.clear()
        self._epochs += 1
        self.is_known = False

    def lose_last(self, count: int) -> None:
        """Lose the last events, as a replica does that is promoted too early: same epoch."""
        del self.events[max(0, len(self.events) - count) :]

    def states(self, count: int | None = None) -> dict[str, Any]:
        """Return the state of each key after the first ``count`` events, or after all."""
        events = [json.loads(event.json) for event in self.events[:count]]
        return {event["key"]: event["state"] for event in events}

    def view_at(self, count: int) -> View:
        """Return the view of a client that has the first ``count`` events."""
        view = View(TOPIC)
        if count:
            last = self.events[count - 1]
            cursor = str(Cursor(self.epoch, last.offset, last.chain))
            place = {"offset": last.offset, "cursor": cursor, "states": self.states(count)}
            view.sync({"mode": "snapshot", **place})
            view.interrupt()
        return view

    def read(self, asked: Cursor | None) -> Snapshot:
        if not self.is_known:
            return Snapshot(None)
        retained = self.events[max(self.trimmed, len(self.events) - RETAINED_EVENTS) :]
        first = retained[0].offset if retained else self.cursor.offset + 1
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


class Reading:
    """A call of the backend's `snapshot`; the test makes the snapshot, and later returns it."""

    def __init__(self, log: Log, asked: Cursor | None) -> None:
        self.asked = asked
        self.answer: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._log = log
        self._made: Snapshot | None = None

    @property
    def is_made(self) -> bool:
        return self._made is not None

    def seen(self) -> Hashable:
        """Return what can be seen of it, to compare."""
        made = self._made
        return self.asked, None if made is None else (made.cursor, made.reason, len(made.events))

    def make(self) -> None:
        """Read the log now. Events that are appended later are not in the snapshot."""
        self._made = self._made or self._log.read(self.asked)

    def finish(self) -> None:
        """Return the snapshot to the channel."""
        self.make()
        assert self._made is not None
        self.answer.set_result(self._made)


class ScriptedIO:
    """What a channel gets from the process around it; the test decides when readings end."""

    def __init__(self, log: Log) -> None:
        self.readings: list[Reading] = []
        """Readings that have not returned yet."""
        self.resyncs: list[ResyncReason] = []
        self.ended: list[Channel] = []
        """Channels that have ended, after their last watcher."""
        self.tasks: set[asyncio.Task[Any]] = set()
        self._log = log

    def channel(self) -> Channel:
        io = ChannelIO(
            self.subscribe,
            self.read,
            self.pause,
            self.spawn,
            self.resyncs.append,
            self.ended.append,
        )
        channel = Channel(TOPIC, Limits(), io)
        # The test's own: a hub would make a new channel after this one has ended.
        channel.reserve()
        return channel

    async def subscribe(self, topic: str) -> None:
        await asyncio.sleep(0)

    async def read(
        self, topic: str, asked: Cursor | None, history: int, user: str | None
    ) -> Snapshot:
        reading = Reading(self._log, asked)
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
        self.shown: list[dict[str, Any]] = []
        """The events that came live or as a replay, each once."""
        self.allowed: dict[str, str | None] = {}
        self.user = "7"
        self.wire_name = "test"
        self.subscriptions = 1
        self.outbox_bytes = 0
        self.is_slow = False
        self.is_awake = False
        """Whether the channel has woken it since it collected."""

    def begin_anew(self, view: View) -> None:
        """Be another page, with what it knows."""
        self.view = view
        self.shown = []

    async def join(self) -> None:
        """Follow from the client's cursor, again after each failure, as a connection does."""
        asked = Cursor.parse(self.view.cursor) if self.view.cursor else None
        while True:
            self.channel.reserve()
            try:
                await self.channel.subscribed()
                followed = await self.channel.follow(self, asked, 0)
                break
            except BackendError:
                self.channel.release()
        self.subscription, snapshot = followed
        if snapshot.cursor is None:
            self.subscription.restart(snapshot, asked)
        else:
            self._receive_sync(self.channel.answer(asked, snapshot))
            self.wake(self.subscription)

    def leave(self) -> None:
        assert self.subscription is not None
        self.channel.leave(self.subscription)
        self.subscription = None
        self.is_awake = False
        self.view.interrupt()

    def collect(self) -> None:
        """Receive what the subscription has, if the channel has woken the client."""
        if self.subscription is None or not self.is_awake:
            return
        self.is_awake = False
        pending = self.subscription.collect_pending()
        if pending is not None:
            before, snapshot = pending
            if snapshot.cursor is None:
                # The host has no record either.
                assert self.subscription.settle(snapshot)
            self._receive_sync(self.channel.answer(before, snapshot))
        outgoing = self.subscription.collect_events(is_slow=False)
        assert outgoing is not None, "evicted"
        if outgoing.events:
            if self.subscription.cursor != self.channel.cursor:
                # The next piece waits.
                self.wake(self.subscription)
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
        offsets = [event["offset"] for event in batch["events"]]
        assert offsets == list(range(before + 1, before + 1 + len(offsets)))
        assert self.view.offset == before + len(offsets)
        # An event that a failover has lost may be on its way still, after the snapshot without it.
        known = set(map(json.dumps, self.shown))
        assert events == [event for event in batch["events"] if json.dumps(event) not in known]
        self.shown += events
        if offsets:
            place = Cursor.parse(self.view.cursor or "")
            written = self.log.written[place.epoch, place.offset, place.chain]
            assert written == batch["events"][-1]

    def wake(self, subscription: Subscription) -> None:
        self.is_awake = True

    def gone(self, subscription: Subscription) -> None:
        raise AssertionError("nothing was deleted")

    def tick(self, now: float) -> None: ...

    def degraded(self, since: str) -> None: ...

    def restored(self) -> None: ...

    def provisional(self, topic: str, epoch: str, source: str, states: Any) -> None: ...

    def drain(self) -> None: ...
