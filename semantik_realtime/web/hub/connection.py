"""One client's connection: its subscriptions, and the frames and events that wait for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from semantik_realtime.backoff import Backoff
from semantik_realtime.cancellation import cancel_until_done
from semantik_realtime.core import limits
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.session import CloseCode
from semantik_realtime.errors import BackendError
from semantik_realtime.web.hub.channel import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
from semantik_realtime.web.hub.ended import Ended
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.hub.outbox import Outbox
from semantik_realtime.web.hub.permission import Permissions
from semantik_realtime.web.hub.recalls import Recalls
from semantik_realtime.web.hub.rechecks import Rechecks
from semantik_realtime.web.hub.subscription import Subscription
from semantik_realtime.web.outage import DegradedMode
from semantik_realtime.web.tokens import CheckedIdentity
from semantik_realtime.web.wires.wire import Outgoing, Sync, Wire, in_pieces

logger = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """What the client wants of a topic."""

    cursor: Cursor | None
    history: int


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
        identity: CheckedIdentity,
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
        # What the client asked for last, of each topic whose subscription is under way.
        self._asked: dict[str, _Asked] = {}
        # Held while a topic is read, so that many topics at once leave the backend to others too.
        self._reading = asyncio.Semaphore(limits.MAX_READING_JOINS)
        self._rechecks = Rechecks(self, permissions, hub.spawn, outage.wait_for_backend)
        # Topics that are allowed, by which owner; provisional states are sent for these only.
        self._allowed: dict[str, str | None] = {}
        self._outbox = Outbox()
        # Subscriptions with events or a snapshot to collect, in the order of their wake-ups.
        self._dirty: dict[Subscription, None] = {}
        self._recalls = Recalls(outage.recall, hub.spawn, self._send_answer)
        # Set to make `write` collect and send.
        self._wake = asyncio.Event()
        # Why the server ends the connection; set once.
        self._ended: Ended | None = None
        # Since when `write` waits for the socket; None while it does not.
        self._sending_since: float | None = None
        # Whether the client was slow to take one of the frames that were written last.
        self._was_slow = False
        self._next_heartbeat = time.monotonic() + heartbeat_seconds
        # The task that runs `write`.
        self._writer: asyncio.Task[Any] | None = None

    @property
    def user(self) -> str:
        """Who is connected."""
        return self.identity.user

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
    def is_slow(self) -> bool:
        return self._was_slow or self._hub.drains.is_slow(self, self._outbox.frame_bytes)

    @property
    def outbox_bytes(self) -> int:
        """About how many bytes wait to be sent, or are being sent."""
        behind = sum(
            subscription.channel.bytes_since(subscription.cursor)
            for subscription in list(self._dirty)
        )
        return self._outbox.bytes + behind

    @property
    def ended(self) -> Ended | None:
        """Why the server ends it; None while it does not."""
        return self._ended

    # Called for the client.

    def subscribe(self, topic: str, asked: Cursor | None, history: int) -> None:
        """Authorize, sync, then follow, in a task. A topic that is followed is synced anew.

        One whose subscription is under way gets no second task, but one answer
        to what the client asked for last.
        """
        is_joining = topic in self._joining
        if not is_joining:
            self.unsubscribe(topic)
        self._asked[topic] = _Asked(asked, history)
        if not is_joining:
            self._joining[topic] = self._hub.spawn(self._join(topic), "join")

    def unsubscribe(self, topic: str) -> None:
        """Stop following."""
        self._allowed.pop(topic, None)
        self._asked.pop(topic, None)
        joining = self._joining.pop(topic, None)
        if joining is not None:
            cancel_until_done(joining)
        subscription = self._subscriptions.pop(topic, None)
        if subscription is not None:
            self._leave(subscription)

    def reauthorize(self, identity: CheckedIdentity) -> None:
        """Replace the credential, and authorize every open topic again, in one task."""
        self.identity = identity
        self._rechecks.start()

    def post(self, *frames: str) -> None:
        """Send ``frames`` soon, in order, before events that come later."""
        if self._outbox.add(frames):
            self._wake.set()
        else:
            self.end(CloseCode.EVICTED, "too slow")

    def end(self, code: CloseCode, reason: str) -> None:
        """End the connection, after the frames that are posted already were sent."""
        if self._ended is None:
            self._ended = Ended(code, reason)
        self._wake.set()

    def close(self) -> None:
        """Leave every topic: the connection has ended."""
        for topic in [*self._joining, *self._subscriptions]:
            self.unsubscribe(topic)
        self._rechecks.close()

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
                    cancel_until_done(self._writer)
            return
        if self.identity.has_expired:
            self.end(CloseCode.EXPIRED, "the credential has expired")
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
        if self._writer is not None:
            # It may wait for a socket that accepts nothing.
            cancel_until_done(self._writer, limits.DRAIN_WRITE_SECONDS)

    # Rechecked: called by its rechecks.

    @property
    def followed(self) -> Mapping[str, Subscription]:
        return self._subscriptions

    def allow(self, subscription: Subscription, owner: str | None) -> None:
        self._allowed[subscription.channel.topic] = owner
        self.wake(subscription)

    def hold(self, subscription: Subscription) -> None:
        self._allowed.pop(subscription.channel.topic, None)

    def refuse(self, topic: str) -> None:
        self._hub.stats.count_denied("rechecked")
        self.unsubscribe(topic)
        self._deny(topic)

    def fail(self) -> None:
        self.end(CloseCode.SERVER_ERROR, "server error")

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
            batches, was_slow = self._collect(), False
            while self._outbox.sending:
                self.note_progress()
                frame = self._outbox.sending[0]
                was_slow |= await self._hub.drains.send(self, self._send, frame)
                await self._outbox.sent()
            self._sending_since, self._was_slow = None, was_slow
            if batches:
                self._hub.stats.count_written(batches, time.time())
            if self._ended is not None and self._outbox.is_empty:
                raise self._ended

    def note_progress(self) -> None:
        """A frame, or a part of one, is about to be sent: the one before has left the process."""
        self._sending_since = time.monotonic()

    def _collect(self) -> list[Outgoing]:
        """Make `write` send what waits, about `COLLECT_BYTES`; return the batches of events."""
        out = self._outbox.collect()
        dirty, self._dirty = self._dirty, {}
        waiting: list[tuple[str, Outgoing]] = []
        collected = 0
        for subscription in dirty:
            if collected > limits.COLLECT_BYTES:
                self.wake(subscription)
                continue
            topic = subscription.channel.topic
            if self._subscriptions.get(topic) is not subscription:
                continue
            if not subscription.is_permitted:
                self._rechecks.renew(subscription)
                continue
            pending = subscription.collect_pending()
            if pending is not None:
                before, snapshot = pending
                if snapshot.cursor is None:
                    self._recalls.start(subscription, before)
                    continue
                frames = self._answer(subscription.channel.answer(before, snapshot))
                collected += sum(map(len, frames))
                out += frames
            outgoing = subscription.collect_events(is_slow=self._was_slow)
            if outgoing is None:
                self.end(CloseCode.EVICTED, "too slow")
                break
            if outgoing.events:
                collected += len(outgoing.member)
                waiting.append((topic, outgoing))
                if subscription.cursor != subscription.channel.cursor:
                    # The next piece, after what other topics have.
                    self.wake(subscription)
        for part in in_pieces(waiting):
            out += self._wire.events(part)
        return [outgoing for _, outgoing in waiting]

    def _answer(self, sync: Sync) -> list[str]:
        self._hub.stats.count_sync(sync.reason)
        return self._wire.sync(sync)

    def _send_answer(self, subscription: Subscription, sync: Sync) -> None:
        self.post(*self._answer(sync))
        self.wake(subscription)

    # Joining and leaving.

    async def _join(self, topic: str) -> None:
        backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        # A library may swallow a cancellation (wait_for until Python 3.12).
        while self._is_joining(topic):
            try:
                if not await self._try_join(topic, self._asked[topic]):
                    continue
            except BackendError as error:
                logger.debug("connection: join waits topic=%s error=%s", topic, error)
                await self._outage.wait_for_backend(backoff.next_seconds())
            except Exception:
                self.fail()
                raise
            else:
                break
        if self._is_joining(topic):
            del self._joining[topic], self._asked[topic]

    def _is_joining(self, topic: str) -> bool:
        return self._joining.get(topic) is asyncio.current_task()

    async def _try_join(self, topic: str, wanted: _Asked) -> bool:
        """Join once. Return False if the client has asked for something else in the meantime."""
        permission = await self._permissions.wait(self.identity.user, topic)
        if not permission.is_allowed:
            self._deny(topic)
            return True
        if self._is_joining(topic):
            self._allowed[topic] = permission.owner
            self._outage.show(topic, self)
        asked, history = wanted
        async with self._reading:
            # The answers of a client that does not read must not pile up.
            await self._outbox.wait_for_room()
            subscription, snapshot = await self._hub.follow(self, topic, asked, history)
        if not self._is_joining(topic) or self._asked[topic] is not wanted:
            self._leave(subscription)
            return False
        # No await from here to the post: no event may be sent before the sync.
        self._subscriptions[topic] = subscription
        subscription.permit(permission.epoch)
        if snapshot.deleted:
            # `gone` must not cancel this very task.
            del self._joining[topic], self._asked[topic]
            self.gone(subscription)
        elif snapshot.cursor is None or snapshot.cursor.epoch != permission.epoch:
            subscription.restart(snapshot, asked)
        else:
            self._send_answer(subscription, subscription.channel.answer(asked, snapshot))
        return True

    def _deny(self, topic: str) -> None:
        frames = self._wire.denied(topic)
        self.post(*frames)
        if not frames:
            self.end(CloseCode.POLICY, "not yours, or not there")

    def _leave(self, subscription: Subscription) -> None:
        self._recalls.forget(subscription)
        self._rechecks.forget(subscription)
        self._dirty.pop(subscription, None)
        subscription.channel.leave(subscription)
