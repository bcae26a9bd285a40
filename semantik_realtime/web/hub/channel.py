"""One watched topic of a process: its position, its newest events and its watchers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec

from semantik_realtime.backoff import Backoff
from semantik_realtime.cancellation import cancel_until_done
from semantik_realtime.core import frames
from semantik_realtime.core.backpressure import Limits, Write, conflate, plan_write
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.limits import KEEP_EVENTS, PIECE_BYTES, SPARE_BYTES
from semantik_realtime.core.resume import take_bytes
from semantik_realtime.core.splice import NOWHERE, Admission, Phase, ResyncReason, Splice
from semantik_realtime.errors import BackendError
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.hub.subscription import Subscription, Watcher
from semantik_realtime.web.wires.wire import Outgoing, Sync

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 1.0
SYNC_SECONDS = 1.0
"""How long an answer is kept for others that ask for the same."""


class ChannelIO(NamedTuple):
    """What the channels need of the process around them; one object for all."""

    subscribe: Callable[[str], Awaitable[None]]
    """Make the backend deliver the events of a topic to `Channel.receive`."""
    read: Callable[[str, Cursor | None, int, str | None], Coroutine[Any, Any, Snapshot]]
    """`semantik_realtime.hookspecs.Backend.snapshot`, when it is the turn of the user who is the
    last argument; None: of the process."""
    pause: Callable[[float], Awaitable[None]]
    """Wait for so many seconds, and while the backend is away until it is back."""
    spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]
    """Start a task that ends with the hub."""
    count_resync: Callable[[ResyncReason], None]
    """Count a topic that is read again."""
    ended: Callable[[Channel], None]
    """Remove the channel: nobody watches it any more."""


class Channel:
    """The position of one watched topic, and the watchers that follow it.

    The rules are those of `semantik_realtime.core.splice.Splice`; this class
    makes the calls that it asks for and wakes the watchers. For one loop.
    """

    def __init__(self, topic: str, limits: Limits, io: ChannelIO) -> None:
        self.topic = topic
        self.checked: Cursor | None = None
        """The position at the last call of `is_unchanged`; None before the first one."""
        self._limits = limits
        self._io = io
        self._splice = Splice()
        # Who follows; added by `_join`, removed by `leave`.
        self._watchers: set[Subscription] = set()
        # Connections that watch or are about to. The hub removes the channel at 0.
        self._reserved = 0
        # Whether the backend delivers the topic, and the task that makes it do so, which is
        # started anew if it failed. None: there is none any more, or not yet.
        self._is_subscribed = False
        self._subscribing: asyncio.Task[None] | None = None
        # The resync under way, which waits out an outage; None while there is none.
        self._resyncing: asyncio.Task[None] | None = None
        # Readings under way, by cursor and history: equal requests share one.
        self._readings: dict[tuple[Cursor | None, int], asyncio.Task[Snapshot]] = {}
        # Encoded events by the position they follow, for several watchers; cleared by new events.
        self._outgoing: dict[tuple[Cursor, bool], Outgoing | None] = {}
        # The last answer to a subscription: a crowd that joins gets the same one.
        self._last_sync: Sync | None = None

    @property
    def buffer_bytes(self) -> int:
        """The bytes of the events that are kept."""
        return self._splice.buffer.bytes

    @property
    def cursor(self) -> Cursor:
        """The newest position."""
        return self._splice.buffer.cursor

    @property
    def held(self) -> int:
        """How many live batches wait until the position is known."""
        return self._splice.held

    @property
    def phase(self) -> Phase:
        """Whether the position is known."""
        return self._splice.phase

    @property
    def resyncing(self) -> asyncio.Task[None] | None:
        """The resync under way."""
        return self._resyncing

    @property
    def reservations(self) -> int:
        """How many connections watch the topic, or are about to."""
        return self._reserved

    def is_unchanged(self) -> bool:
        """Note the position; return False if it is another one than at the last call."""
        before, self.checked = self.checked, self.cursor
        return before is None or before == self.checked

    def bytes_since(self, cursor: Cursor) -> int:
        """Return about how many bytes of events follow ``cursor``."""
        return self._splice.buffer.bytes_since(cursor.offset)

    def reserve(self) -> None:
        """Keep the channel for a connection that is about to watch, until `release`."""
        self._reserved += 1

    def release(self) -> None:
        """Undo one `reserve`. After the last one the channel ends."""
        self._reserved -= 1
        if self._reserved == 0:
            if self._resyncing is not None:
                cancel_until_done(self._resyncing)
            self._io.ended(self)

    async def subscribed(self) -> None:
        """Wait until the backend delivers the topic.

        Raises:
            BackendError: it does not; the next call tries again.
        """
        if self._is_subscribed:
            return
        task = self._subscribing
        if task is None or has_failed(task):
            task = self._subscribing = self._io.spawn(self._subscribe(), "subscribe")
        await asyncio.shield(task)

    async def wait_until_subscribed(self) -> None:
        """Wait until the subscription at the backend has succeeded or failed, if one is made."""
        if self._subscribing is not None:
            await asyncio.wait((self._subscribing,))

    # Live batches.

    def receive(self, prev: Cursor, events: Sequence[Event]) -> None:
        """Receive a live batch and wake the watchers, or read the topic again after a gap."""
        admission = self._splice.receive(prev, events)
        if admission is Admission.FRESH:
            self._wake_watchers()
        elif (reason := admission.resync_reason) is not None:
            facts = self.topic, self.cursor, prev
            if reason is ResyncReason.DIVERGED:
                logger.info("hub: diverged topic=%s cursor=%s prev=%s", *facts)
            else:
                logger.info("hub: gap topic=%s cursor=%s prev=%s", *facts)
            self.resync(reason)

    def gone(self) -> None:
        """The topic was deleted: end every subscription."""
        for subscription in list(self._watchers):
            subscription.watcher.gone(subscription)

    # Subscriptions.

    async def follow(
        self, watcher: Watcher, asked: Cursor | None, history: int
    ) -> tuple[Subscription, Snapshot]:
        """Add a watcher at a cursor.

        The snapshot is what the client gets first; the subscription continues
        exactly after it. From here on the watcher is woken for events that
        arrive; for those that follow the snapshot already it wakes itself.

        Raises:
            BackendError: the watcher was not added.
        """
        buffer = self._splice.buffer
        while True:
            if self.phase is Phase.LIVE and buffer.epoch and asked and buffer.knows(asked):
                return self._add(watcher, self.cursor), self._replay(asked)
            snapshot = await self._read(asked, history, watcher.user)
            place = snapshot.cursor or NOWHERE
            before = self.cursor
            replay = snapshot.events if snapshot.reason is None else None
            reason = self._splice.join(asked, place, replay)
            if self.cursor != before:
                self._wake_watchers()
            if reason is not None:
                self.resync(reason)
            if self._resyncing is not None:
                await asyncio.shield(self._resyncing)
            # At a position outside this history the watcher would not notice a rewriting.
            if buffer.knows(place):
                return self._add(watcher, place), snapshot

    def leave(self, subscription: Subscription) -> None:
        """Remove a watcher, and the reservation under which it joined."""
        self._watchers.discard(subscription)
        self.release()

    def outgoing(self, cursor: Cursor, *, is_slow: bool) -> Outgoing | None:
        """Return the next events that follow ``cursor``; None: the connection must end.

        All that wait, conflated, for a slow connection with many; else the
        first ones, of about `PIECE_BYTES`.
        """
        if len(self._watchers) == 1:
            # Not kept: it would outlive a young collection of garbage, and with thousands of
            # topics these make the collector look at everything, which stops the process.
            return self._encode(cursor, is_slow)
        key = cursor, is_slow
        if key not in self._outgoing:
            self._outgoing[key] = self._encode(cursor, is_slow)
        return self._outgoing[key]

    def _encode(self, cursor: Cursor, is_slow: bool) -> Outgoing | None:
        buffer = self._splice.buffer
        events = buffer.since(cursor.offset)
        # A position outside this history cannot be continued; the client resumes by its cursor.
        if events is None or (cursor.epoch and not buffer.knows(cursor)):
            return None
        size = sum(len(event.json) for event in events)
        plan = plan_write(size, self._limits, is_slow=is_slow)
        if plan is Write.EVICT:
            return None
        end, left_out = buffer.cursor, 0
        if plan is Write.CONFLATED:
            kept = conflate(events)
            left_out = len(events) - len(kept)
        elif size <= PIECE_BYTES:
            kept = events
        else:
            kept = take_bytes(events, PIECE_BYTES)
            end = Cursor(end.epoch, kept[-1].offset, kept[-1].chain)
        member = frames.topic_events(self.topic, cursor.offset, end, kept, left_out)
        since = _time_of(kept[0]) if kept else None
        return Outgoing(end, kept, left_out, member, frames.events_frame([member]), since)

    def answer(
        self,
        asked: Cursor | None,
        snapshot: Snapshot,
        recalled: Mapping[str, bytes] | None = None,
    ) -> Sync:
        """Return the answer to a subscription. Equal answers are the same object, encoded once."""
        last = self._last_sync
        if last is None or not last.answers(asked, snapshot, recalled):
            last = self._last_sync = Sync(self.topic, asked, snapshot, recalled)
            # It may be large, and the topic may be watched for hours without another event.
            asyncio.get_running_loop().call_later(SYNC_SECONDS, self._forget_sync, last)
        return last

    def _forget_sync(self, sync: Sync) -> None:
        if self._last_sync is sync:
            self._last_sync = None

    def _replay(self, asked: Cursor) -> Snapshot:
        """Return the kept events after ``asked``; the same object to a crowd that reconnects."""
        last = self._last_sync
        if last is not None and last.asked == asked and last.reason is None:
            if last.snapshot.cursor == self.cursor:
                return last.snapshot
        events = self._splice.buffer.since(asked.offset)
        assert events is not None
        return Snapshot(self.cursor, None, None, {}, events)

    # Resync.

    def resync(self, reason: ResyncReason) -> None:
        """Read again what was missed, once for all watchers. Does nothing if that is under way."""
        if self._reserved and self._splice.start_resync():
            self._io.count_resync(reason)
            self._resyncing = self._io.spawn(self._resync(), "resync")

    async def _resync(self) -> None:
        backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        try:
            while True:
                asked = self._splice.asked
                try:
                    snapshot = await self._io.read(self.topic, asked, 0, None)
                except Exception as error:
                    # Whatever it was: a channel that held its events for ever would be worse.
                    if not isinstance(error, BackendError):
                        logger.exception("hub: resync failed topic=%s", self.topic)
                    await self._io.pause(backoff.next_seconds())
                    continue
                if self._apply(asked, snapshot):
                    return
        finally:
            self._resyncing = None

    def _apply(self, asked: Cursor | None, snapshot: Snapshot) -> bool:
        """Continue from what a resync has read. Return False if it must read once more."""
        if snapshot.deleted:
            # The subscription lost the notice of it.
            self.gone()
        before = self.cursor
        is_replay = snapshot.cursor is not None and snapshot.reason is None and asked is not None
        if not is_replay and (snapshot.cursor is not None or before.epoch):
            logger.info("hub: resync topic=%s reason=%s", self.topic, snapshot.reason)
        is_complete = self._splice.finish_resync(
            snapshot.cursor or NOWHERE, snapshot.events if is_replay else None
        )
        if not is_replay:
            # Also where the backend still does not know the topic: the host's record may differ.
            for subscription in self._watchers:
                subscription.restart(snapshot)
        self._wake_watchers()
        return is_complete

    async def _subscribe(self) -> None:
        await self._io.subscribe(self.topic)
        # Not kept: there are thousands of channels.
        self._is_subscribed, self._subscribing = True, None

    async def _read(self, asked: Cursor | None, history: int, user: str) -> Snapshot:
        key = (asked, history)
        reading = self._readings.get(key)
        if reading is None:
            reading = self._io.spawn(self._io.read(self.topic, asked, history, user), "snapshot")
            self._readings[key] = reading
            reading.add_done_callback(lambda _: self._readings.pop(key, None))
        return await asyncio.shield(reading)

    def _add(self, watcher: Watcher, cursor: Cursor) -> Subscription:
        subscription = Subscription(watcher, self, cursor)
        self._watchers.add(subscription)
        return subscription

    def _wake_watchers(self) -> None:
        self._outgoing.clear()
        buffer = self._splice.buffer
        if len(buffer) > 2 * KEEP_EVENTS or buffer.bytes > self._limits.evict_above_bytes:
            needed = spared = buffer.offset
            for subscription in self._watchers:
                needed = min(needed, subscription.cursor.offset)
                if not subscription.watcher.is_slow:
                    spared = min(spared, subscription.cursor.offset)
            most = self._limits.evict_above_bytes
            buffer.trim(needed, KEEP_EVENTS, most, spared=spared, spare_bytes=SPARE_BYTES)
        for subscription in self._watchers:
            subscription.watcher.wake(subscription)


def has_failed(task: asyncio.Task[None]) -> bool:
    """Return True if ``task`` ended with an error or was cancelled."""
    return task.done() and (task.cancelled() or task.exception() is not None)


class _Stamp(msgspec.Struct):
    time: Annotated[datetime, msgspec.Meta(tz=True)]


_decode_stamp = msgspec.json.Decoder(_Stamp).decode


def _time_of(event: Event) -> float | None:
    try:
        return _decode_stamp(event.json).time.timestamp()
    except msgspec.DecodeError:
        # A log accepts any text for a time.
        return None
