"""One client's connection: its subscriptions, and the frames and events that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from semantik_realtime.backoff import Backoff
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.limits import MAX_POSTED, MAX_POSTED_BYTES
from semantik_realtime.core.session import CloseCode
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.web.access import Identity, has_expired
from semantik_realtime.web.hub.channel import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.hub.permission import Permissions
from semantik_realtime.web.hub.subscription import Subscription
from semantik_realtime.web.outage import DegradedMode
from semantik_realtime.web.wires.wire import Outgoing, Sync, Wire

logger = logging.getLogger(__name__)

RECALL_RETRY_SECONDS = 5.0


class Ended(Exception):
    """The server ends the connection, with a close code and a reason."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Connection:
    """One client: its subscriptions and its outbox. It is a `web.hub.subscription.Watcher`.

    Only `write`, in one task, sends; everybody else posts a frame or wakes it.
    `end` makes `write` raise `Ended`.

    Args:
        wire: how frames are encoded.
        hub: the process's hub.
        outage: the process's degraded mode.
        permissions: whether a user may watch a topic.
        identity: who is connected, and until when.
        send: sends one frame to the client.
        heartbeat_seconds: between two heartbeats.
    """

    def __init__(
        self,
        wire: Wire,
        hub: Hub,
        outage: DegradedMode,
        permissions: Permissions,
        identity: Identity,
        send: Callable[[str], Awaitable[None]],
        *,
        heartbeat_seconds: float,
    ) -> None:
        self.identity = identity
        """Who is connected; replaced by `reauthorize`."""
        self._wire = wire
        self._hub = hub
        self._outage = outage
        self._permissions = permissions
        self._send = send
        self._heartbeat_seconds = heartbeat_seconds
        # Topics that are followed, and those whose subscription is under way.
        self._subscriptions: dict[str, Subscription] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        # Asks whether a subscription whose log has begun again may still be served.
        self._authorizing: dict[Subscription, asyncio.Task[None]] = {}
        # Topics that are allowed, by which owner; provisional states are sent for these only.
        self._allowed: dict[str, str | None] = {}
        # Frames that wait, and how many bytes they have.
        self._posted: deque[str] = deque()
        self._posted_bytes = 0
        # The frames that `write` is sending.
        self._sending: Sequence[str] = ()
        # Subscriptions with events or a snapshot to collect, in the order of their wake-ups.
        self._dirty: dict[Subscription, None] = {}
        # Asks the host for its record of topics that the backend does not know.
        self._recalls: dict[Subscription, asyncio.Task[None]] = {}
        # Set to make `write` collect and send.
        self._wake = asyncio.Event()
        # Why the server ends the connection; set once.
        self._ended: Ended | None = None
        # Since when `write` waits for the socket; None while it does not.
        self._sending_since: float | None = None
        self._next_heartbeat = time.monotonic() + heartbeat_seconds
        # The task that runs `write`.
        self._writer: asyncio.Task[Any] | None = None

    @property
    def topics(self) -> set[str]:
        """The topics that are followed, or about to be."""
        return self._subscriptions.keys() | self._joining.keys()

    @property
    def allowed(self) -> Mapping[str, str | None]:
        """The topics whose states it may get, each with its owner; None: not known."""
        return self._allowed

    @property
    def wire_name(self) -> str:
        """The name of its wire."""
        return self._wire.name

    @property
    def subscriptions(self) -> int:
        """How many topics it follows."""
        return len(self._subscriptions)

    @property
    def outbox_bytes(self) -> int:
        """About how many bytes wait to be sent, or are being sent."""
        behind = sum(
            subscription.channel.bytes_since(subscription.cursor)
            for subscription in list(self._dirty)
        )
        return self._posted_bytes + sum(map(len, self._sending)) + behind

    @property
    def ended(self) -> Ended | None:
        """Why the server ends it; None while it does not."""
        return self._ended

    # Called for the client.

    def subscribe(self, topic: str, asked: Cursor | None, history: int) -> None:
        """Authorize, sync, then follow, in a task. A topic that is followed is synced anew."""
        self.unsubscribe(topic)
        self._joining[topic] = self._hub.spawn(self._join(topic, asked, history), "join")

    def unsubscribe(self, topic: str) -> None:
        """Stop following."""
        self._allowed.pop(topic, None)
        joining = self._joining.pop(topic, None)
        if joining is not None:
            joining.cancel()
        subscription = self._subscriptions.pop(topic, None)
        if subscription is not None:
            self._leave(subscription)

    def reauthorize(self, identity: Identity) -> None:
        """Replace the credential, and authorize every open topic again."""
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
        """End the connection, after the frames that are posted already were sent."""
        if self._ended is None:
            self._ended = Ended(code, reason)
        self._wake.set()

    def close(self) -> None:
        """Leave every topic: the connection has ended."""
        for topic in [*self._joining, *self._subscriptions]:
            self.unsubscribe(topic)

    # Watcher: called by the hub and by channels.

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
                    # It waits for a socket that accepts nothing.
                    self._writer.cancel()
            return
        if has_expired(self.identity):
            self.end(CloseCode.EXPIRED, "the token has expired")
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._heartbeat_seconds
            # While events wait, their cursor is one that the client does not have yet.
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
        """Send frames and events for as long as the connection lives.

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
                self._hub.stats.count_written(batches, time.time())
            if self._ended is not None and not self._posted:
                raise self._ended

    def _collect(self) -> tuple[list[str], list[Outgoing]]:
        """Return all that waits, as frames, and the batches of events in them."""
        out = list(self._posted)
        self._posted.clear()
        self._posted_bytes = 0
        dirty, self._dirty = self._dirty, {}
        waiting: list[tuple[str, Outgoing]] = []
        for subscription in dirty:
            topic = subscription.channel.topic
            if self._subscriptions.get(topic) is not subscription:
                continue
            if not subscription.is_permitted:
                self._start_authorizing(subscription)
                continue
            pending = subscription.collect_pending()
            if pending is not None:
                before, snapshot = pending
                if snapshot.cursor is None:
                    self._start_recall(subscription, before)
                    continue
                out += self._answer(subscription.channel.answer(before, snapshot))
            outgoing = subscription.collect_events()
            if outgoing is None:
                self.end(CloseCode.EVICTED, "too slow")
                break
            if outgoing.events:
                waiting.append((topic, outgoing))
        if waiting:
            out += self._wire.events(waiting)
        return out, [outgoing for _, outgoing in waiting]

    def _answer(self, sync: Sync) -> list[str]:
        self._hub.stats.count_sync(sync.reason)
        return self._wire.sync(sync)

    # Topics that the backend does not know.

    def _start_recall(self, subscription: Subscription, before: Cursor | None) -> None:
        running = self._recalls.get(subscription)
        if running is None or running.done():
            recall = self._recall(subscription, before)
            self._recalls[subscription] = self._hub.spawn(recall, "answer")

    async def _recall(self, subscription: Subscription, before: Cursor | None) -> None:
        """Ask the host for its record, outside the writer, which must not wait for it.

        Until the host has answered the client gets nothing of the topic, unless
        the backend comes to know it and a snapshot replaces the pending one.
        """
        channel = subscription.channel
        while (snapshot := subscription.pending) is not None and snapshot.cursor is None:
            try:
                recalled = await self._outage.recall(channel.topic)
            except BackendUnavailable:
                await asyncio.sleep(RECALL_RETRY_SECONDS)
                continue
            if subscription.settle(snapshot):
                self.post(*self._answer(channel.answer(before, snapshot, recalled)))
                self.wake(subscription)

    # Topics whose log has begun again.

    def _start_authorizing(self, subscription: Subscription) -> None:
        # Meanwhile it gets nothing of the topic, provisional states neither.
        self._allowed.pop(subscription.channel.topic, None)
        running = self._authorizing.get(subscription)
        if running is None or running.done():
            task = self._hub.spawn(self._authorize(subscription), "authorize")
            self._authorizing[subscription] = task

    async def _authorize(self, subscription: Subscription) -> None:
        topic = subscription.channel.topic
        try:
            permission = await self._permissions.renew(
                self.identity.user, subscription, self._outage.wait_for_backend
            )
        except Exception:
            self.end(CloseCode.SERVER_ERROR, "server error")
            raise
        if self._subscriptions.get(topic) is not subscription:
            return
        if permission.is_allowed:
            self._allowed[topic] = permission.owner
            self.wake(subscription)
        else:
            self.unsubscribe(topic)
            self._deny(topic)

    # Joining and leaving.

    async def _join(self, topic: str, asked: Cursor | None, history: int) -> None:
        backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        # A library may swallow a cancellation (wait_for until Python 3.12).
        while self._is_joining(topic):
            try:
                await self._try_join(topic, asked, history)
            except BackendError as error:
                logger.debug("connection: join waits topic=%s error=%s", topic, error)
                await self._outage.wait_for_backend(backoff.next_seconds())
            except Exception:
                self.end(CloseCode.SERVER_ERROR, "server error")
                raise
            else:
                break
        if self._is_joining(topic):
            del self._joining[topic]

    def _is_joining(self, topic: str) -> bool:
        return self._joining.get(topic) is asyncio.current_task()

    async def _try_join(self, topic: str, asked: Cursor | None, history: int) -> None:
        permission = await self._permissions.wait(self.identity.user, topic)
        if not permission.is_allowed:
            self._deny(topic)
            return
        if self._is_joining(topic):
            self._allowed[topic] = permission.owner
            self._outage.show(topic, self)
        subscription, snapshot = await self._hub.follow(self, topic, asked, history)
        if not self._is_joining(topic):
            self._leave(subscription)
            return
        # No await from here to the post: no event may be sent before the sync.
        self._subscriptions[topic] = subscription
        subscription.permit(permission.epoch)
        if snapshot.deleted:
            # `gone` must not cancel this very task.
            del self._joining[topic]
            self.gone(subscription)
        elif snapshot.cursor is None or snapshot.cursor.epoch != permission.epoch:
            subscription.restart(snapshot, asked)
        else:
            self.post(*self._answer(subscription.channel.answer(asked, snapshot)))
            self.wake(subscription)

    async def _recheck(self, topic: str) -> None:
        # While nobody can tell, the earlier answer stands; the token itself is valid.
        with contextlib.suppress(BackendError):
            permission = await self._permissions.ask(self.identity.user, topic)
            if not permission.is_allowed and topic in self._subscriptions:
                self.unsubscribe(topic)
                self._deny(topic)

    def _deny(self, topic: str) -> None:
        frames = self._wire.denied(topic)
        self.post(*frames)
        if not frames:
            self.end(CloseCode.POLICY, "not yours, or not there")

    def _leave(self, subscription: Subscription) -> None:
        for tasks in (self._recalls, self._authorizing):
            task = tasks.pop(subscription, None)
            # `unsubscribe` must not cancel the very task that calls it.
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._dirty.pop(subscription, None)
        subscription.channel.leave(subscription)
