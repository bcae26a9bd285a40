"""Live events from one node: a subscription for each topic, on one connection that is renewed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from redis.exceptions import RedisError, ResponseError

from semantik_realtime.backends.redis.canary import Canary
from semantik_realtime.backends.redis.nodes import Moved, slot_of
from semantik_realtime.backends.redis.refusals import redirection_of
from semantik_realtime.backends.redis.replies import deliver
from semantik_realtime.backends.redis.send import pack
from semantik_realtime.backoff import Backoff, spread
from semantik_realtime.cancellation import keep_cancellation, stop_tasks
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Sink
from semantik_realtime.urls import mask_text

logger = logging.getLogger(__name__)

CANARY_SECONDS = 5.0
"""Time between two canaries, varied by 15 %."""
CANARY_TOPIC = "canary:"
"""The beginning of the name that stands for a topic in the channel of a canary."""
SUBSCRIBE_CHUNK = 500
"""Most channels of one SUBSCRIBE."""
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 1.0


class Owner(Protocol):
    """What a `Subscriber` tells its owner. Called on the loop; must not block or raise."""

    def failed(self, subscriber: Subscriber) -> None:
        """The connection is broken, or could not be made."""

    def moved(self, subscriber: Subscriber) -> None:
        """A part of its topics belongs to other nodes; they have no subscription any more."""


class Subscriber:
    """Delivers published events to sinks. Lives on one loop.

    Owns one connection and two tasks. One reads; when the connection breaks it
    makes another and subscribes to every topic again. It calls `Sink.interrupted`
    when the server confirms the topic, before any event of the new connection:
    that may belong to a history that a failover has rewritten, and continue the
    known one only by its offset. The other task sends a canary every few
    seconds, and closes a connection that does not deliver it: such a connection is
    dead, or leads to another server than the writer's.

    In a cluster it has the topics of one node. When that node gives a topic away,
    it says so, and the owner moves the topic to another `Subscriber`.

    Args:
        connect: makes a connection that is not connected yet.
        canary: sends numbers that must come back over the connection.
        channel_of: the channel of a topic.
        timeout_seconds: deadline of connecting, of a command and of its confirmation.
        is_sharded: whether the node is one of a cluster, which publishes to its own subscribers
            only.
        owner: is called when the connection fails.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        canary: Canary,
        channel_of: Callable[[str], str],
        timeout_seconds: float,
        *,
        is_sharded: bool = False,
        owner: Owner | None = None,
    ) -> None:
        self._connect = connect
        self._canary = canary
        self._channel_of = channel_of
        self._timeout = timeout_seconds
        self._owner = owner
        self._is_sharded = is_sharded
        letter = "S" if is_sharded else ""
        self._subscribe, self._unsubscribe = f"{letter}SUBSCRIBE", f"{letter}UNSUBSCRIBE"
        # The first items of the messages of the server.
        self._confirms, self._ends, self._delivers = (
            (letter.lower() + word).encode() for word in ("subscribe", "unsubscribe", "message")
        )
        # The topic and the sink of each channel that is subscribed or about to be.
        self._sinks: dict[bytes, tuple[str, Sink]] = {}
        # For each channel the SUBSCRIBEs on this connection that the server has not confirmed.
        # Only the last confirmation counts: if a topic was subscribed, unsubscribed and subscribed
        # again, the first one says nothing about the present.
        self._unconfirmed: Counter[bytes] = Counter()
        # The channels that are subscribed on this connection; cleared when it breaks.
        self._confirmed: set[bytes] = set()
        # Channels whose sink must be called with `interrupted` when they are confirmed: those that
        # were subscribed when this connection was made, unless it is the first one, or at another
        # node.
        self._interrupted: set[bytes] = set()
        # Resolved with the confirmation; several calls of `subscribe` may wait for one.
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        # Channels whose slot the node has given to another one, until `release`.
        self._given_away: set[bytes] = set()
        # What commands are sent on; None from a break until the next connection is made.
        self._connection: Any = None
        # Around all that the reading task awaits on the connection; `_close_connection` ends it.
        self._reading: asyncio.Timeout | None = None
        # Held while a command is written, because two must not mix.
        self._sending = asyncio.Lock()
        # Reading and canary, from `open` to `close`.
        self._tasks: list[asyncio.Task[None]] = []
        # Set while every topic is subscribed.
        self._up = asyncio.Event()
        self._backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)

    async def open(self) -> None:
        """Connect, and stay connected until `close`.

        Raises:
            RedisError, OSError: the first connection failed; no task runs.
        """
        connection = self._connect()
        try:
            async with asyncio.timeout(self._timeout):
                await keep_cancellation(connection.connect())
        except BaseException:
            await self._disconnect(connection)
            raise
        self._start(connection)

    def start(self) -> None:
        """Do as `open`, but also stay if the first connection fails."""
        self._start(self._connect())

    def _start(self, connection: Any) -> None:
        self._tasks = [
            asyncio.create_task(
                self._stay_connected(connection), name="semantik-realtime-subscriber"
            ),
            asyncio.create_task(self._check_canary(), name="semantik-realtime-canary"),
        ]

    async def close(self) -> None:
        """End the tasks and the connection; no sink is called any more."""
        self._sinks.clear()
        tasks, self._tasks = self._tasks, []
        await stop_tasks(tasks)

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """Subscribe, and return when the server has confirmed. Replaces the topic's sink.

        The server is the one that the process writes to now, or follows it: a canary shows that
        after each new connection of the subscriber or of the writer.

        Raises:
            BackendUnavailable: no confirmation in time, or no canary; the topic is not subscribed.
            Moved: the node does not have the topic; it is not subscribed.
        """
        channel = self._channel_of(topic).encode()
        is_new = channel not in self._sinks
        self._sinks[channel] = (topic, sink)
        try:
            async with asyncio.timeout(self._timeout):
                await self._wait_confirmed(channel)
                await self._canary.prove(lambda: self._connection)
        except TimeoutError:
            if is_new or channel not in self._confirmed:
                await self.unsubscribe(topic)
            raise BackendUnavailable(f"no live events of what is written ({topic})") from None

    async def _wait_confirmed(self, channel: bytes) -> None:
        """Subscribe to a channel, unless that was confirmed."""
        if channel in self._confirmed:
            return
        confirmation = self._confirmations.get(channel)
        if confirmation is None:
            confirmation = asyncio.get_running_loop().create_future()
            self._confirmations[channel] = confirmation
            await self._send(self._subscribe, channel)
        await asyncio.shield(confirmation)

    async def unsubscribe(self, topic: str) -> None:
        """Stop calling the topic's sink at once, and tell the server if it can be reached."""
        channel = self._channel_of(topic).encode()
        if self._sinks.pop(channel, None) is None:
            return
        self._confirmed.discard(channel)
        self._interrupted.discard(channel)
        # A later `subscribe` must wait for a confirmation of its own.
        if confirmation := self._waiting(channel):
            confirmation.set_exception(BackendUnavailable(f"unsubscribed (topic {topic})"))
            confirmation.exception()  # Retrieved: the `subscribe` may have given up.
        await self._send(self._unsubscribe, channel)

    async def adopt(self, sinks: Mapping[str, Sink]) -> None:
        """Subscribe topics that were at another node; `Sink.interrupted` is called when it works.

        Does not wait for that, nor for a connection.
        """
        channels = []
        for topic, sink in sinks.items():
            channel = self._channel_of(topic).encode()
            self._sinks[channel] = (topic, sink)
            self._interrupted.add(channel)
            channels.append(channel)
        await self._send(self._subscribe, *channels)

    def release(self, belongs: Callable[[str], bool]) -> dict[str, Sink]:
        """Give up the topics that the node has given away, and those that do not belong to it.

        Return the sinks for which no `subscribe` waits; one that waits raises `Moved`. Sends no
        command to the server.
        """
        released = {}
        for channel, (topic, sink) in list(self._sinks.items()):
            if channel in self._given_away or not belongs(channel.decode()):
                del self._sinks[channel]
                self._confirmed.discard(channel)
                self._interrupted.discard(channel)
                if confirmation := self._waiting(channel):
                    confirmation.set_exception(Moved(topic))
                else:
                    released[topic] = sink
        self._given_away.clear()
        return released

    def _waiting(self, channel: bytes) -> asyncio.Future[None] | None:
        """Take out what a `subscribe` waits for, if one does."""
        confirmation = self._confirmations.pop(channel, None)
        return None if confirmation is None or confirmation.done() else confirmation

    async def _stay_connected(self, connection: Any) -> None:
        """Read, and make another connection whenever one breaks, until cancelled."""
        is_first = True
        try:
            while True:
                try:
                    async with asyncio.timeout(None) as self._reading:
                        async with asyncio.timeout(self._timeout):
                            await keep_cancellation(connection.connect())
                        if not is_first:
                            self._interrupted.update(self._sinks)
                        await self._resubscribe(connection)
                        if not is_first:
                            logger.info("subscriber: resubscribed topics=%d", len(self._sinks))
                        is_first = False
                        self._backoff.reset()
                        while True:
                            await self._receive_next(connection)
                except Exception as error:
                    # Any error: without this task no event would be delivered any more.
                    if self._backoff.failures == 0:
                        logger.warning(
                            "subscriber: connection lost error=%s", mask_text(repr(error))
                        )
                    if self._owner is not None:
                        self._owner.failed(self)
                self._connection, is_first = None, False
                self._up.clear()
                await self._disconnect(connection)
                await asyncio.sleep(self._backoff.next_seconds())
                connection = self._connect()
        finally:
            self._connection = None
            await self._disconnect(connection)

    async def _resubscribe(self, connection: Any) -> None:
        """Subscribe to all channels on a new connection, and wait for the confirmations."""
        # From here on `subscribe` sends its command on this connection.
        self._connection = connection
        self._unconfirmed.clear()
        self._confirmed.clear()
        self._given_away.clear()
        canary = self._canary.choose()
        channels = [*([] if canary is None else [canary]), *self._sinks]
        for start in range(0, len(channels), SUBSCRIBE_CHUNK):
            await self._send(self._subscribe, *channels[start : start + SUBSCRIBE_CHUNK])
        outstanding = set(channels)
        async with asyncio.timeout(self._timeout):
            while outstanding:
                outstanding.difference_update(await self._receive_next(connection))
        self._up.set()

    async def _check_canary(self) -> None:
        """Send canaries, and close a connection that does not deliver one in time."""
        backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        while True:
            await self._up.wait()
            connection = self._connection
            try:
                if self._canary.channel is not None:
                    await self._canary.fly(connection)
                elif (chosen := self._canary.choose()) is not None:
                    # The node has given away the slot of the one before.
                    await self._send(self._subscribe, chosen)
            except Exception as error:
                logger.warning("subscriber: canary lost error=%s", mask_text(repr(error)))
                self._close_connection(connection)
                await asyncio.sleep(backoff.next_seconds())
            else:
                backoff.reset()
                await self._canary.pause(spread(CANARY_SECONDS))

    async def _send(self, name: str, *channels: bytes) -> None:
        """Send a command. Without a connection do nothing: the next one subscribes to all sinks."""
        async with self._sending:
            connection = self._connection
            if connection is None:
                return
            if name == self._subscribe:
                self._unconfirmed.update(channels)
            if self._is_sharded:
                # The channels of one command must be in one slot.
                packed = pack([(name, channel) for channel in channels])
                sending = connection.send_packed_command([packed], check_health=False)
            else:
                sending = connection.send_command(name, *channels, check_health=False)
            try:
                async with asyncio.timeout(self._timeout):
                    await keep_cancellation(sending)
            except (RedisError, OSError, TimeoutError):
                self._close_connection(connection)

    def _close_connection(self, connection: Any) -> None:
        """Make the reading task close ``connection``, unless it already has another one."""
        if connection is not None and connection is self._connection:
            assert self._reading is not None
            self._connection = None
            self._up.clear()
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def _disconnect(self, connection: Any) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout):
                await keep_cancellation(connection.disconnect(nowait=True))

    async def _receive_next(self, connection: Any) -> Sequence[bytes]:
        """Receive one message; return the channels whose SUBSCRIBE it answers."""
        try:
            message = await keep_cancellation(connection.read_response())
        except ResponseError as error:
            # The reply to a SSUBSCRIBE names the slot.
            if (redirection := redirection_of(error)) is None:
                raise
            gone = [it for it in self._unconfirmed if slot_of(it.decode()) == redirection[0]]
            self._give_away(gone)
            return gone
        kind, channel = message[0], message[1]
        if kind == self._delivers:
            self._receive(channel, message[2])
        elif kind == self._confirms:
            self._confirm(channel)
            return [channel]
        elif kind == self._ends and self._is_sharded:
            # `unsubscribe` takes a channel out of the confirmed ones: this is no answer to it.
            self._give_away([channel] if channel in self._confirmed else [])
        return []

    def _receive(self, channel: bytes, payload: bytes) -> None:
        if channel == self._canary.channel:
            self._canary.receive(payload)
        elif (found := self._sinks.get(channel)) is not None:
            deliver(*found, payload)

    def _confirm(self, channel: bytes) -> None:
        self._unconfirmed[channel] -= 1
        if self._unconfirmed[channel] > 0:
            return
        del self._unconfirmed[channel]
        if channel == self._canary.channel:
            self._confirmed.add(channel)
        if channel not in self._sinks:
            return
        self._confirmed.add(channel)
        if channel in self._interrupted:
            self._interrupted.remove(channel)
            topic, sink = self._sinks[channel]
            sink.interrupted(topic)
        if confirmation := self._waiting(channel):
            confirmation.set_result(None)

    def _give_away(self, channels: Sequence[bytes]) -> None:
        """Note that the node serves the channels no longer."""
        for channel in channels:
            self._unconfirmed.pop(channel, None)
            self._confirmed.discard(channel)
            if channel == self._canary.channel:
                self._canary.channel = None
            elif channel in self._sinks:
                self._given_away.add(channel)
        if self._given_away and self._owner is not None:
            self._owner.moved(self)
