"""One client's link: what waits for it, and the one task that writes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.session import CloseCode
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.access import Identity, has_expired
from semantik_realtime.web.hub.channel import NOWHERE, Outgoing, Subscription, reason_of
from semantik_realtime.web.hub.hub import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, Hub

logger = logging.getLogger(__name__)

RECALL_RETRY_SECONDS = 5.0
MAX_POSTED = 1000
"""Frames that may wait beside events: answers, syncs, heartbeats."""
MAX_POSTED_BYTES = 16 * 2**20
"""The same in bytes. What is posted last may go beyond both, for a snapshot has no limit."""


class Wire(Protocol):
    """How a connection speaks. Pure: frames come out, nothing is sent."""

    name: str

    def sync(
        self,
        topic: str,
        asked: Cursor | None,
        snapshot: Snapshot,
        recalled: Mapping[str, bytes] | None,
    ) -> list[str]:
        """The answer to a subscription."""

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        """What waits in one or more topics."""

    def denied(self, topic: str) -> list[str]:
        """This topic is not for the client, or does not exist. Nothing: the connection ends."""

    def gone(self, topic: str) -> list[str]:
        """The topic was deleted."""

    def degraded(self, since: str) -> list[str]:
        """The backend is away."""

    def restored(self) -> list[str]:
        """It is back."""

    def provisional(
        self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]
    ) -> list[str]:
        """What is known of a topic without the backend, as JSON."""

    def heartbeat(self, places: Mapping[str, Cursor]) -> list[str]:
        """A sign of life."""

    def bye(self) -> list[str]:
        """The server stops."""


class Ended(Exception):
    """The server ends the connection, and says why."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Connection:
    """Subscriptions of one client, and everything that is to be sent to it.

    All sending is done by `write`, in one task; everyone else leaves frames
    or a wake-up and goes on. What has to end the connection is left in
    `end`, and comes out of `write` as `Ended`.
    """

    def __init__(
        self,
        wire: Wire,
        hub: Hub,
        may_watch: Callable[[str, str], Awaitable[bool]],
        identity: Identity,
        send: Callable[[str], Awaitable[None]],
        *,
        heartbeat_seconds: float,
    ) -> None:
        self.identity = identity
        self._wire = wire
        self._hub = hub
        self._may_watch = may_watch
        self._send = send
        self._heartbeat_seconds = heartbeat_seconds
        self._subscriptions: dict[str, Subscription] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._allowed: set[str] = set()
        self._posted: deque[str] = deque()
        self._posted_bytes = 0
        self._sending: Sequence[str] = ()
        self._dirty: dict[Subscription, None] = {}
        self._wake = asyncio.Event()
        self._ended: Ended | None = None
        self._sending_since: float | None = None
        self._next_heartbeat = time.monotonic() + heartbeat_seconds
        self._writer: asyncio.Task[Any] | None = None

    @property
    def topics(self) -> set[str]:
        """What is watched, or about to be."""
        return self._subscriptions.keys() | self._joining.keys()

    @property
    def shown(self) -> Collection[str]:
        """What it may be told of."""
        return self._allowed

    @property
    def wire_name(self) -> str:
        """How it speaks."""
        return self._wire.name

    @property
    def subscriptions(self) -> int:
        """How many topics it follows."""
        return len(self._subscriptions)

    @property
    def outbox_bytes(self) -> int:
        """About how much waits to be sent, or is being sent."""
        behind = sum(
            subscription.channel.recent.bytes_since(subscription.cursor.offset)
            for subscription in list(self._dirty)
        )
        return self._posted_bytes + sum(map(len, self._sending)) + behind

    # What the client asks for.

    def subscribe(self, topic: str, asked: Cursor | None, history: int) -> None:
        """Authorize, sync, then follow, in a task of its own. Repeating it syncs anew."""
        self.unsubscribe(topic)
        self._joining[topic] = self._hub.spawn(self._join(topic, asked, history), "join")

    def unsubscribe(self, topic: str) -> None:
        """Stop following."""
        self._allowed.discard(topic)
        joining = self._joining.pop(topic, None)
        if joining is not None:
            joining.cancel()
        subscription = self._subscriptions.pop(topic, None)
        if subscription is not None:
            self._leave(subscription)

    def reauthorize(self, identity: Identity) -> None:
        """A fresh credential: check again what is open."""
        self.identity = identity
        for topic in list(self._subscriptions):
            self._hub.spawn(self._recheck(topic), "recheck")

    def post(self, *frames: str) -> None:
        """Send ``frames`` soon, in order, before events that come later."""
        if len(self._posted) >= MAX_POSTED or self._posted_bytes > MAX_POSTED_BYTES:
            self.end(CloseCode.EVICTED, "too slow")
            return
        self._posted.extend(frames)
        self._posted_bytes += sum(map(len, frames))
        self._wake.set()

    def end(self, code: CloseCode, reason: str) -> None:
        """End the connection: after what is already posted has been sent."""
        if self._ended is None:
            self._ended = Ended(code, reason)
        self._wake.set()

    # Watcher: called by the hub.

    def wake(self, subscription: Subscription) -> None:
        self._dirty[subscription] = None
        self._wake.set()

    def gone(self, subscription: Subscription) -> None:
        topic = subscription.channel.topic
        self.unsubscribe(topic)
        self.post(*self._wire.gone(topic))

    def tick(self, now: float) -> None:
        if self._sending_since is not None:
            if now - self._sending_since > self._hub.limits.stall_seconds:
                self.end(CloseCode.EVICTED, "too slow")
                if self._writer is not None:
                    # It waits for a socket that takes nothing.
                    self._writer.cancel()
            return
        if has_expired(self.identity):
            self.end(CloseCode.EXPIRED, "the token has expired")
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._heartbeat_seconds
            # Events on their way would make a cursor that the client does not have yet.
            if not self._dirty:
                places = {
                    topic: subscription.cursor
                    for topic, subscription in self._subscriptions.items()
                    if subscription.pending is None and subscription.cursor.epoch
                }
                self.post(*self._wire.heartbeat(places))

    def degraded(self, since: str) -> None:
        self.post(*self._wire.degraded(since))

    def restored(self) -> None:
        self.post(*self._wire.restored())

    def provisional(self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]) -> None:
        self.post(*self._wire.provisional(topic, epoch, source, states))

    def drain(self) -> None:
        self.post(*self._wire.bye())
        self.end(CloseCode.DRAIN, "the server stops")

    # Writing.

    async def write(self) -> None:
        """Send what waits, for as long as the connection lives.

        Raises:
            Ended: the server ends it.
        """
        self._writer = asyncio.current_task()
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._sending, batches = self._collect()
            for frame in self._sending:
                self._sending_since = time.monotonic()
                await self._send(frame)
            self._sending_since = None
            self._sending = ()
            if batches:
                self._hub.stats.written(batches, time.time())
            if self._ended is not None and not self._posted:
                raise self._ended

    @property
    def ended(self) -> Ended | None:
        """Why the server ends it, if it does."""
        return self._ended

    def close(self) -> None:
        """Give everything back."""
        for topic in [*self._joining, *self._subscriptions]:
            self.unsubscribe(topic)

    def _collect(self) -> tuple[list[str], list[Outgoing]]:
        """Everything that waits, as frames, and the batches in them; the subscriptions move on."""
        out = list(self._posted)
        self._posted.clear()
        self._posted_bytes = 0
        dirty, self._dirty = self._dirty, {}
        waiting: list[tuple[str, Outgoing]] = []
        for subscription in dirty:
            channel = subscription.channel
            if self._subscriptions.get(channel.topic) is not subscription:
                continue
            if (snapshot := subscription.pending) is not None:
                before = subscription.cursor if subscription.cursor.epoch else None
                subscription.cursor = snapshot.cursor or NOWHERE
                if snapshot.cursor is None:
                    if subscription.recalling is None or subscription.recalling.done():
                        recall = self._recall(subscription, before)
                        subscription.recalling = self._hub.spawn(recall, "answer")
                    continue
                subscription.pending = None
                out += self._answer(channel.topic, before, snapshot, None)
            outgoing = channel.outgoing(subscription.cursor)
            if outgoing is None:
                self.end(CloseCode.EVICTED, "too slow")
                break
            if outgoing.events:
                subscription.cursor = outgoing.cursor
                waiting.append((channel.topic, outgoing))
        if waiting:
            out += self._wire.events(waiting)
        return out, [outgoing for _, outgoing in waiting]

    async def _recall(self, subscription: Subscription, before: Cursor | None) -> None:
        """Ask the host for what the backend does not know, beside the writer.

        Until it has answered the client is told nothing of the topic, unless
        the backend comes to know it and a snapshot takes this one's place.
        """
        topic = subscription.channel.topic
        while (snapshot := subscription.pending) is not None and snapshot.cursor is None:
            try:
                recalled = await self._hub.recall(topic)
            except BackendUnavailable:
                await asyncio.sleep(RECALL_RETRY_SECONDS)
                continue
            if subscription.pending is snapshot:
                subscription.pending = None
                self.post(*self._answer(topic, before, snapshot, recalled))
                self.wake(subscription)

    async def _join(self, topic: str, asked: Cursor | None, history: int) -> None:
        retry_seconds = FIRST_RETRY_SECONDS
        # A cancellation can get lost in a library (wait_for until Python 3.12).
        while self._is_joining(topic):
            try:
                await self._try_join(topic, asked, history)
            except BackendError as error:
                logger.debug("connection: join waits topic=%s error=%s", topic, error)
                await self._hub.wait_for_backend(retry_seconds)
                retry_seconds = min(retry_seconds * 2, LAST_RETRY_SECONDS)
            except Exception:
                self.end(CloseCode.SERVER_ERROR, "server error")
                raise
            else:
                break
        if self._is_joining(topic):
            del self._joining[topic]

    def _answer(
        self,
        topic: str,
        asked: Cursor | None,
        snapshot: Snapshot,
        recalled: Mapping[str, bytes] | None,
    ) -> list[str]:
        reason = reason_of(asked, snapshot, is_recalled=recalled is not None)
        self._hub.stats.syncs[reason or "replay"] += 1
        return self._wire.sync(topic, asked, snapshot, recalled)

    def _is_joining(self, topic: str) -> bool:
        return self._joining.get(topic) is asyncio.current_task()

    async def _try_join(self, topic: str, asked: Cursor | None, history: int) -> None:
        if not await self._may_watch(self.identity.user, topic):
            self._deny(topic)
            return
        if self._is_joining(topic):
            self._allowed.add(topic)
            self._hub.meanwhile.show(topic, self)
        channel = await self._hub.acquire(topic)
        try:
            subscription, snapshot = await self._hub.sync(self, channel, asked, history)
        except BaseException:
            self._hub.release(channel)
            raise
        if not self._is_joining(topic):
            self._leave(subscription)
            return
        # No await from joining to posting: nothing may come between the sync and what follows.
        self._subscriptions[topic] = subscription
        if snapshot.deleted:
            # It is this very task: leaving the topic is not to cancel it.
            del self._joining[topic]
            self.gone(subscription)
            return
        if snapshot.cursor is None:
            subscription.pending = snapshot
            subscription.cursor = asked or NOWHERE
        else:
            self.post(*self._answer(topic, asked, snapshot, None))
        self.wake(subscription)

    async def _recheck(self, topic: str) -> None:
        # Until somebody can be asked the old answer stands; the token itself is good.
        with contextlib.suppress(BackendError):
            allowed = await self._may_watch(self.identity.user, topic)
            if not allowed and topic in self._subscriptions:
                self.unsubscribe(topic)
                self._deny(topic)

    def _deny(self, topic: str) -> None:
        told = self._wire.denied(topic)
        self.post(*told)
        if not told:
            self.end(CloseCode.POLICY, "not yours, or not there")

    def _leave(self, subscription: Subscription) -> None:
        if subscription.recalling is not None:
            subscription.recalling.cancel()
        subscription.channel.watchers.discard(subscription)
        self._dirty.pop(subscription, None)
        self._hub.release(subscription.channel)
