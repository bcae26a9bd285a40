"""One client's connection: its subscriptions, and the frames and events that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NamedTuple

from semantik_realtime.backoff import Backoff
from semantik_realtime.core.event import Cursor
from semantik_realtime.core.limits import COLLECT_BYTES, MAX_READING_JOINS
from semantik_realtime.core.session import CloseCode
from semantik_realtime.errors import BackendError
from semantik_realtime.web.hub.channel import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.hub.outbox import Outbox
from semantik_realtime.web.hub.recalls import Recalls
from semantik_realtime.web.hub.subscription import Subscription
from semantik_realtime.web.outage import DegradedMode
from semantik_realtime.web.tokens import CheckedIdentity
from semantik_realtime.web.wires.wire import Outgoing, Sync, Wire

logger = logging.getLogger(__name__)

DRAIN_WRITE_SECONDS = 1.0
"""How long a drained connection may send what waits for it: less than `Hub.drain` waits."""


class Ended(Exception):
    """The server ends the connection, with a close code and a reason."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


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
        may_watch: whether a user may watch a topic; raises BackendError if
            nobody can tell now.
        identity: who is connected, and until when.
        send: sends one frame to the client.
        heartbeat_seconds: between two heartbeats.
    """

    def __init__(
        self,
        wire: Wire,
        hub: Hub,
        outage: DegradedMode,
        may_watch: Callable[[str, str], Awaitable[bool]],
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
        self._may_watch = may_watch
        self._send = send
        self._heartbeat_seconds = heartbeat_seconds
        # Topics that are followed, and those whose subscription is under way.
        self._subscriptions: dict[str, Subscription] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        # What the client asked for last, of each topic whose subscription is under way.
        self._asked: dict[str, _Asked] = {}
        # Held while a topic is read, so that many topics at once leave the backend to others too.
        self._reading = asyncio.Semaphore(MAX_READING_JOINS)
        # Authorizes the open topics again, and whether it has to begin anew when it is done.
        self._rechecking: asyncio.Task[None] | None = None
        self._recheck_again = False
        # Topics that `may_watch` has allowed; provisional states are sent for these only.
        self._allowed: set[str] = set()
        self._outbox = Outbox()
        # Subscriptions with events or a snapshot to collect, in the order of their wake-ups.
        self._dirty: dict[Subscription, None] = {}
        # Asks the host for its record of topics that the backend does not know.
        self._recalls = Recalls(
            outage.recall, hub.spawn, lambda sync: self.post(*self._answer(sync))
        )
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
    def user(self) -> str:
        """Who is connected."""
        return self.identity.user

    @property
    def topics(self) -> set[str]:
        """The topics that are followed, or about to be."""
        return self._subscriptions.keys() | self._joining.keys()

    @property
    def allowed(self) -> Collection[str]:
        """The topics whose states it may get."""
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
        self._allowed.discard(topic)
        self._asked.pop(topic, None)
        joining = self._joining.pop(topic, None)
        if joining is not None:
            joining.cancel()
        subscription = self._subscriptions.pop(topic, None)
        if subscription is not None:
            self._leave(subscription)

    def reauthorize(self, identity: CheckedIdentity) -> None:
        """Replace the credential, and authorize every open topic again, in one task."""
        self.identity = identity
        self._recheck_again = True
        if self._rechecking is None or self._rechecking.done():
            self._rechecking = self._hub.spawn(self._recheck_all(), "recheck")

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
        if self._rechecking is not None:
            self._rechecking.cancel()

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
            # It may wait for a socket that accepts nothing, which the web server would close with
            # a code of its own when the time of the drain is over.
            asyncio.get_running_loop().call_later(DRAIN_WRITE_SECONDS, self._writer.cancel)

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
            batches = self._collect()
            while self._outbox.sending:
                self.note_progress()
                await self._send(self._outbox.sending[0])
                self._outbox.sent()
            self._sending_since = None
            if batches:
                self._hub.stats.count_written(batches, time.time())
            if self._ended is not None and self._outbox.is_empty:
                raise self._ended

    def note_progress(self) -> None:
        """A frame, or a part of one, is about to be sent: the one before has left the process."""
        self._sending_since = time.monotonic()

    def _collect(self) -> list[Outgoing]:
        """Make `write` send what waits; return the batches of events in it.

        Subscriptions beyond `COLLECT_BYTES` wait for the next time.
        """
        out = self._outbox.collect()
        dirty, self._dirty = self._dirty, {}
        waiting: list[tuple[str, Outgoing]] = []
        collected = 0
        for subscription in dirty:
            if collected > COLLECT_BYTES:
                self.wake(subscription)
                continue
            topic = subscription.channel.topic
            if self._subscriptions.get(topic) is not subscription:
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
            outgoing = subscription.collect_events()
            if outgoing is None:
                self.end(CloseCode.EVICTED, "too slow")
                break
            if outgoing.events:
                collected += len(outgoing.member)
                waiting.append((topic, outgoing))
        if waiting:
            out += self._wire.events(waiting)
        return [outgoing for _, outgoing in waiting]

    def _answer(self, sync: Sync) -> list[str]:
        self._hub.stats.count_sync(sync.reason)
        return self._wire.sync(sync)

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
                self.end(CloseCode.SERVER_ERROR, "server error")
                raise
            else:
                break
        if self._is_joining(topic):
            del self._joining[topic], self._asked[topic]

    def _is_joining(self, topic: str) -> bool:
        return self._joining.get(topic) is asyncio.current_task()

    async def _try_join(self, topic: str, wanted: _Asked) -> bool:
        """Join once. Return False if the client has asked for something else in the meantime."""
        if not await self._may_watch(self.identity.user, topic):
            self._deny(topic)
            return True
        if self._is_joining(topic):
            self._allowed.add(topic)
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
        if snapshot.deleted:
            # `gone` must not cancel this very task.
            del self._joining[topic], self._asked[topic]
            self.gone(subscription)
        elif snapshot.cursor is None:
            subscription.restart(snapshot, asked)
        else:
            self.post(*self._answer(subscription.channel.answer(asked, snapshot)))
            self.wake(subscription)
        return True

    async def _recheck_all(self) -> None:
        while self._recheck_again:
            self._recheck_again = False
            await asyncio.gather(*map(self._recheck, list(self._subscriptions)))

    async def _recheck(self, topic: str) -> None:
        # While nobody can tell, the earlier answer stands; the token itself is valid.
        with contextlib.suppress(BackendError):
            allowed = await self._may_watch(self.identity.user, topic)
            if not allowed and topic in self._subscriptions:
                self.unsubscribe(topic)
                self._deny(topic)

    def _deny(self, topic: str) -> None:
        frames = self._wire.denied(topic)
        self.post(*frames)
        if not frames:
            self.end(CloseCode.POLICY, "not yours, or not there")

    def _leave(self, subscription: Subscription) -> None:
        self._recalls.cancel(subscription)
        self._dirty.pop(subscription, None)
        subscription.channel.leave(subscription)
