"""What a process knows of one watched topic, and who watches it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Protocol

import msgspec

from semantik_realtime.core import frames
from semantik_realtime.core.backpressure import Limits, Write, conflate, plan_write
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.core.resume import Reason
from semantik_realtime.core.splice import Admission, EventBuffer
from semantik_realtime.hookspecs import Snapshot

KEEP_EVENTS = 100
"""EventBuffer events kept a channel even when every watcher has them."""
MAX_HELD = 1000
NOWHERE = Cursor("", 0, 0)
"""The position in a topic that the backend does not know."""


class Watcher(Protocol):
    """A connection, as its channels see it."""

    @property
    def shown(self) -> Collection[str]:
        """The topics that it may be told of."""

    @property
    def wire_name(self) -> str:
        """How it speaks."""

    @property
    def subscriptions(self) -> int:
        """How many topics it follows."""

    @property
    def outbox_bytes(self) -> int:
        """About how much waits to be sent to it, or is being sent."""

    def wake(self, subscription: Subscription) -> None:
        """Something waits; come and collect it."""

    def gone(self, subscription: Subscription) -> None:
        """The topic was deleted; the subscription is over."""

    def tick(self, now: float) -> None:
        """About once a second."""

    def degraded(self, since: str) -> None:
        """The backend is away; what is shown may be outdated."""

    def restored(self) -> None:
        """It is back, and every topic is up to date again."""

    def provisional(self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]) -> None:
        """What is known of ``topic`` without the backend, as JSON, until it is restored."""

    def drain(self) -> None:
        """The server stops: end in a way that brings the client back."""


class Subscription:
    """One connection's place in one channel."""

    __slots__ = ("channel", "cursor", "pending", "recalling", "watcher")

    def __init__(self, watcher: Watcher, channel: Channel, cursor: Cursor) -> None:
        self.watcher = watcher
        self.channel = channel
        self.cursor = cursor
        """What was last handed to the connection."""
        self.pending: Snapshot | None = None
        """A snapshot that must be handed over before anything else."""
        self.recalling: asyncio.Task[None] | None = None
        """Asks the host for what goes with a snapshot of a topic that nobody knows."""


class Outgoing(msgspec.Struct, frozen=True):
    """What waits at one position, ready for every watcher there."""

    cursor: Cursor
    events: Sequence[Event]
    member: bytes
    """The topic's member of an ``events`` frame."""
    frame: str
    """A whole frame for a connection that watches nothing else."""
    since: float | None
    """The time of the oldest of the events, in seconds since 1970; None: it has none."""


class Channel:
    """What the process knows of one watched topic."""

    def __init__(self, topic: str, limits: Limits) -> None:
        self.topic = topic
        self.recent = EventBuffer()
        self.watchers: set[Subscription] = set()
        self.users = 0
        """Connections that watch or are about to; at 0 the topic is unsubscribed."""
        self.subscribed: asyncio.Task[None] | None = None
        self.resyncing: asyncio.Task[None] | None = None
        self.held: deque[tuple[str, int, Sequence[Event]]] | None = self.hold()
        """Live batches that came before a position was known, or during a resync."""
        self.reading: dict[tuple[Cursor | None, int], asyncio.Future[Snapshot]] = {}
        self._limits = limits
        self._outgoing: dict[int, Outgoing | None] = {}

    @staticmethod
    def hold() -> deque[tuple[str, int, Sequence[Event]]]:
        """Room for batches. The oldest go first, so that what was lost leaves a gap."""
        return deque(maxlen=MAX_HELD)

    def begin(self, cursor: Cursor) -> None:
        """Take ``cursor`` as the position, and what was held after it."""
        self.recent.restart(cursor)
        self._outgoing.clear()

    def release_held(self) -> bool:
        """Take the held batches; False: they leave a gap."""
        held, self.held = self.held, None
        return self.take_all(held or ())

    def take_all(self, batches: Iterable[tuple[str, int, Sequence[Event]]]) -> bool:
        """Take each of ``batches``; False: there is a gap."""
        complete = True
        for batch in batches:
            complete = self.take(*batch) and complete
        return complete

    def take(self, epoch: str, prev: int, events: Sequence[Event]) -> bool:
        """Admit a live batch and wake the watchers; False: there is a gap."""
        if self.held is not None:
            self.held.append((epoch, prev, events))
            return True
        if self.recent.epoch == "" and prev == 0:
            # The topic did not exist; this is its beginning.
            self.begin(Cursor(epoch, 0, 0))
        admission = self.recent.admit(epoch, prev, events)
        if admission is Admission.FRESH:
            self._outgoing.clear()
            if len(self.recent) > 2 * KEEP_EVENTS or (
                self.recent.bytes > self._limits.evict_above_bytes
            ):
                self._trim()
            for subscription in self.watchers:
                subscription.watcher.wake(subscription)
        return admission in (Admission.FRESH, Admission.KNOWN)

    def outgoing(self, cursor: Cursor) -> Outgoing | None:
        """What waits for a watcher at ``cursor``; None: so much that it is to be evicted."""
        if cursor.offset in self._outgoing:
            return self._outgoing[cursor.offset]
        events = self.recent.since(cursor.offset)
        made = None
        if events is not None:
            plan = plan_write(sum(len(event.json) for event in events), self._limits)
            if plan is not Write.EVICT:
                kept = conflate(events) if plan is Write.CONFLATED else events
                # A watcher that read ahead of the feed has nothing to get, and must not go back.
                place = self.recent.cursor if events else cursor
                member = frames.topic_events(
                    self.topic, cursor.offset, place, kept, len(events) - len(kept)
                )
                since = _time_of(kept[0]) if kept else None
                made = Outgoing(place, kept, member, frames.events_frame([member]), since)
        self._outgoing[cursor.offset] = made
        return made

    def restart(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot: every watcher must have it first."""
        self.begin(snapshot.cursor or NOWHERE)
        for subscription in self.watchers:
            subscription.pending = snapshot
            subscription.watcher.wake(subscription)

    def _trim(self) -> None:
        needed = min(
            (subscription.cursor.offset for subscription in self.watchers),
            default=self.recent.offset,
        )
        self.recent.trim(needed, KEEP_EVENTS, self._limits.evict_above_bytes)


def reason_of(asked: Cursor | None, snapshot: Snapshot, *, is_recalled: bool) -> Reason | None:
    """Why the answer to a subscription is a snapshot; None: it is a replay."""
    if snapshot.cursor is None:
        if is_recalled:
            return Reason.RECALLED
        return Reason.NEW if asked is None else Reason.EPOCH
    if snapshot.reason is None and asked is None:
        return Reason.NEW
    return snapshot.reason


def states_of(snapshot: Snapshot) -> dict[str, bytes]:
    """The bare states of a snapshot, as JSON."""
    states = {}
    for key, event in snapshot.states.items():
        head = Event(0, 0, event).head()
        if isinstance(head.state, msgspec.Raw):
            states[key] = bytes(head.state)
    return states


class _Stamp(msgspec.Struct):
    time: Annotated[datetime, msgspec.Meta(tz=True)]


_decode_stamp = msgspec.json.Decoder(_Stamp).decode


def _time_of(event: Event) -> float | None:
    try:
        return _decode_stamp(event.json).time.timestamp()
    except msgspec.DecodeError:
        # The log takes any text for a time.
        return None
