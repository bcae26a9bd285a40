"""Live events: one subscription for each watched topic, on one connection that is renewed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from redis.exceptions import RedisError

from semantik_realtime.backends.border import note
from semantik_realtime.backoff import Backoff, spread
from semantik_realtime.cancellation import keep_cancellation, stop_tasks
from semantik_realtime.core.event import Cursor, Event
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Sink
from semantik_realtime.urls import mask_text

logger = logging.getLogger(__name__)

CANARY_SECONDS = 5.0
"""Time between two canaries, varied by 15 %."""
SUBSCRIBE_CHUNK = 500
"""Most channels of one SUBSCRIBE."""
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 1.0


class CanarySender(Protocol):
    """See `semantik_realtime.backends.redis.canary.Canary`."""

    channel: str

    @property
    def lineage(self) -> int: ...
    async def send(self) -> bytes: ...


class Subscriber:
    """Delivers published events to sinks. Lives on one loop.

    Owns one connection and two tasks. One reads; when the connection breaks it
    makes another and subscribes to every topic again. It calls `Sink.interrupted`
    when the server confirms the topic, before any event of the new connection:
    that may belong to a history that a failover has rewritten, and continue the
    known one only by its offset. The other task sends a canary every few
    seconds, a message that the process's writer publishes, and closes a connection
    that does not deliver it: such a connection is dead, or leads to another
    server than the writer's.

    Args:
        connect: makes a connection that is not connected yet.
        canary: sends the canaries, on another connection.
        channel_of: the channel of a topic.
        timeout_seconds: deadline of connecting, of a command and of its confirmation.
        lost: called when a canary is not delivered.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        canary: CanarySender,
        channel_of: Callable[[str], str],
        timeout_seconds: float,
        lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect
        self._canary = canary
        self._lost = lost
        self._channel_of = channel_of
        self._timeout = timeout_seconds
        # The topic and the sink of each channel that is subscribed or about to be.
        self._sinks: dict[bytes, tuple[str, Sink]] = {}
        # For each channel the SUBSCRIBEs on this connection that the server has not confirmed.
        # Only the last confirmation counts: if a topic was subscribed, unsubscribed and subscribed
        # again, the first one says nothing about the present.
        self._unconfirmed: Counter[bytes] = Counter()
        # The channels that are subscribed on this connection; cleared when it breaks.
        self._confirmed: set[bytes] = set()
        # Channels whose sink must be called with `interrupted` when they are confirmed: those that
        # were subscribed when this connection was made, unless it is the first one.
        self._interrupted: set[bytes] = set()
        # Resolved with the confirmation; several calls of `subscribe` may wait for one.
        self._confirmations: dict[bytes, asyncio.Future[None]] = {}
        # The canaries' channel, the newest one that has come back, and the event of that.
        self._canary_channel = canary.channel.encode()
        self._last_canary = b""
        self._canary_seen = asyncio.Event()
        # The connection over which the last canary came back, and the lineage of its writer.
        self._proof: tuple[Any, int] = (None, 0)
        # Set when a canary has come back, and cleared at once: who waits looks at `_proof`.
        self._proven = asyncio.Event()
        # Set to send a canary now.
        self._canary_due = asyncio.Event()
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
        """
        channel = self._channel_of(topic).encode()
        is_new = channel not in self._sinks
        self._sinks[channel] = (topic, sink)
        try:
            async with asyncio.timeout(self._timeout):
                await self._confirm(topic, channel)
                await self._prove()
        except TimeoutError:
            if is_new or channel not in self._confirmed:
                await self.unsubscribe(topic)
            raise BackendUnavailable(
                f"no live events from the server of the writes (topic {topic})"
            ) from None

    async def _confirm(self, topic: str, channel: bytes) -> None:
        """Subscribe to a channel, unless that was confirmed."""
        if channel in self._confirmed:
            return
        confirmation = self._confirmations.get(channel)
        if confirmation is None:
            confirmation = asyncio.get_running_loop().create_future()
            self._confirmations[channel] = confirmation
            await self._send("SUBSCRIBE", channel)
        await asyncio.shield(confirmation)

    async def _prove(self) -> None:
        """Wait for a canary over this connection, from a writer as new as the present one."""
        lineage = self._canary.lineage
        while not self._is_proven(lineage):
            self._canary_due.set()
            await self._proven.wait()

    def _is_proven(self, lineage: int) -> bool:
        connection, proven = self._proof
        return connection is not None and connection is self._connection and proven >= lineage

    async def unsubscribe(self, topic: str) -> None:
        """Stop calling the topic's sink at once, and tell the server if it can be reached."""
        channel = self._channel_of(topic).encode()
        if self._sinks.pop(channel, None) is None:
            return
        self._confirmed.discard(channel)
        # A later `subscribe` must wait for a confirmation of its own.
        confirmation = self._confirmations.pop(channel, None)
        if confirmation is not None and not confirmation.done():
            confirmation.set_exception(BackendUnavailable(f"unsubscribed (topic {topic})"))
        await self._send("UNSUBSCRIBE", channel)

    async def _stay_connected(self, connection: Any) -> None:
        """Read, and make another connection whenever one breaks, until cancelled."""
        is_first = True
        try:
            while True:
                try:
                    async with asyncio.timeout(None) as self._reading:
                        async with asyncio.timeout(self._timeout):
                            await keep_cancellation(connection.connect())
                        self._interrupted = set() if is_first else set(self._sinks)
                        await self._resubscribe(connection)
                        if not is_first:
                            logger.info("subscriber: resubscribed topics=%d", len(self._sinks))
                        is_first = False
                        self._backoff.reset()
                        while True:
                            self._receive(await keep_cancellation(connection.read_response()))
                except Exception as error:
                    # Any error: without this task no event would be delivered any more.
                    if self._backoff.failures == 0:
                        logger.warning(
                            "subscriber: connection lost error=%s", mask_text(repr(error))
                        )
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
        channels = [self._canary_channel, *self._sinks]
        for start in range(0, len(channels), SUBSCRIBE_CHUNK):
            await self._send("SUBSCRIBE", *channels[start : start + SUBSCRIBE_CHUNK])
        outstanding = set(channels)
        async with asyncio.timeout(self._timeout):
            while outstanding:
                message = await keep_cancellation(connection.read_response())
                self._receive(message)
                if message[0] == b"subscribe":
                    outstanding.discard(message[1])
        self._up.set()

    async def _check_canary(self) -> None:
        """Send canaries, and close a connection that does not deliver one in time."""
        backoff = Backoff(FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        while True:
            await self._up.wait()
            self._canary_due.clear()
            connection, lineage = self._connection, self._canary.lineage
            try:
                text = await keep_cancellation(self._canary.send())
                async with asyncio.timeout(self._timeout):
                    while self._last_canary != text:
                        self._canary_seen.clear()
                        await self._canary_seen.wait()
            except Exception as error:
                logger.warning(
                    "subscriber: canary lost, connecting again error=%s", mask_text(repr(error))
                )
                self._close_connection(connection)
                self._lost()
                await asyncio.sleep(backoff.next_seconds())
                continue
            backoff.reset()
            self._proof = (connection, lineage)
            self._proven.set()
            self._proven.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(spread(CANARY_SECONDS)):
                    await self._canary_due.wait()

    async def _send(self, name: str, *channels: bytes) -> None:
        """Send a command. Without a connection do nothing: the next one subscribes to all sinks."""
        async with self._sending:
            connection = self._connection
            if connection is None:
                return
            if name == "SUBSCRIBE":
                self._unconfirmed.update(channels)
            try:
                async with asyncio.timeout(self._timeout):
                    sending = connection.send_command(name, *channels, check_health=False)
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

    def _receive(self, message: Any) -> None:
        kind, channel = message[0], message[1]
        if kind == b"message":
            if channel == self._canary_channel:
                self._last_canary = message[2]
                self._canary_seen.set()
                return
            found = self._sinks.get(channel)
            if found is not None:
                self._deliver(*found, message[2])
        elif kind == b"subscribe":
            self._unconfirmed[channel] -= 1
            if self._unconfirmed[channel] > 0 or channel not in self._sinks:
                return
            self._confirmed.add(channel)
            if channel in self._interrupted:
                self._interrupted.remove(channel)
                topic, sink = self._sinks[channel]
                sink.interrupted(topic)
            confirmation = self._confirmations.pop(channel, None)
            if confirmation is not None and not confirmation.done():
                confirmation.set_result(None)

    @staticmethod
    def _deliver(topic: str, sink: Sink, payload: bytes) -> None:
        """Call ``sink`` with a message of append.lua or delete.lua.

        Events are ``EPOCH OFFSET CHAIN CHAIN …``, the position before them and the chain of each
        in hexadecimal digits, and then a line for each.
        """
        if payload == b"gone":
            sink.gone(topic)
            return
        try:
            prev, events = _read_message(payload)
        except ValueError as error:
            # No append has published it. If one was lost, the next offset shows it.
            note("message", topic, "unknown", str(error))
        else:
            sink.events(topic, prev, events)


def _read_message(payload: bytes) -> tuple[Cursor, list[Event]]:
    """Return the position before the first event, and the events.

    Raises:
        ValueError: append.lua has not made it.
    """
    head, *bodies = payload.split(b"\n")
    epoch, offset, chain_before, *chains = head.decode().split(" ")
    prev = Cursor(epoch, int(offset), int(chain_before))
    return prev, [
        Event(prev.offset + place, int(chain, 16), body)
        for place, (chain, body) in enumerate(zip(chains, bodies, strict=True), start=1)
    ]
