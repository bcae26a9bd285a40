"""Live events: one subscription for each watched topic, on one connection that is renewed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from semantik_realtime.backends.border import note
from semantik_realtime.backends.guard import PROBE_TOPIC
from semantik_realtime.cancellation import stop_tasks
from semantik_realtime.core.event import Cursor
from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable, TopicRefused
from semantik_realtime.hookspecs import Sink
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_exponential,
    wait_random_exponential,
)

from semantik_realtime_nats.client import Message
from semantik_realtime_nats.connection import Connection
from semantik_realtime_nats.errors import explain
from semantik_realtime_nats.records import LogMessage
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.subjects import Subjects

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 1.0
RECONNECT_WAIT = wait_exponential(
    FIRST_RETRY_SECONDS / 2, max=LAST_RETRY_SECONDS / 2
) + wait_random_exponential(FIRST_RETRY_SECONDS / 2, max=LAST_RETRY_SECONDS / 2)
"""Half fixed, so that there is a pause even if a server closes every connection at once; half
random, so that the processes that lost a server do not all reconnect at the same time."""


class Subscriber:
    """Delivers the log messages that the server republishes to sinks. Lives on one loop.

    Owns the connection for reading and the task that renews it. After a break it subscribes to
    every topic again, waits for the server's confirmation, and then calls `Sink.interrupted` of
    every sink; of a sink whose first event arrives earlier, before that event, which may belong
    to a log that a failover has rewritten.
    """

    def __init__(
        self, subjects: Subjects, connect: Callable[[], Awaitable[Stream]], timeout_seconds: float
    ) -> None:
        self._subjects = subjects
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._sinks: dict[str, Sink] = {}
        """The sink of each watched topic."""
        self._subscriptions: dict[str, _Subscription] = {}
        """Of each topic that is subscribed on the current connection."""
        self._interrupted: set[str] = set()
        """Topics whose sink was not called with `interrupted` since the last break. Set before
        they are subscribed on a new connection."""
        self._stream: Stream | None = None
        """On the current connection; None from a break to the next connection."""
        self._attempt_ended = asyncio.Event()
        """Set when an attempt to connect ends, with success or not; then a new one is made."""
        self._error: BackendError = BackendUnavailable("not connected")
        """Why the last failed attempt to connect failed."""
        self._renewing: asyncio.Task[None] | None = None
        """Runs from `open` to `close`."""

    @property
    def stream(self) -> Stream | None:
        """The stream on the current connection; None while there is none."""
        return self._stream

    async def open(self) -> None:
        """Connect, and stay connected until `close`.

        Raises:
            BackendError: the first connection failed; no task runs.
        """
        stream = await self._connect()
        self._use(stream)
        self._renewing = asyncio.create_task(
            self._stay_connected(stream), name="semantik-realtime-subscriber"
        )

    async def close(self) -> None:
        """End the task and the connection; no sink is called any more."""
        if self._renewing is not None:
            await stop_tasks([self._renewing])
        self._sinks.clear()

    async def current_stream(self) -> Stream:
        """Return the stream; without a connection, wait for the attempt that is under way.

        The next attempt begins `LAST_RETRY_SECONDS` later at most.

        Raises:
            BackendError: that attempt failed.
        """
        if self._stream is None or self._stream.connection.is_closed:
            await self._attempt_ended.wait()
        if self._stream is None:
            raise type(self._error)(str(self._error))
        return self._stream

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """See `semantik_realtime.hookspecs.BackendSpec.subscribe`.

        Raises:
            BackendUnavailable: the server did not confirm in time. The topic is not subscribed.
            TopicRefused: the user may not subscribe to this topic. It is not subscribed.
            BackendRefused: the user may not subscribe to others either, or to no more of them.
        """
        self._sinks[topic] = sink
        try:
            async with asyncio.timeout(self._timeout_seconds):
                while True:
                    stream = self._stream
                    if stream is None or stream.connection.is_closed:
                        await self._attempt_ended.wait()
                        continue
                    try:
                        await self._request(stream, topic)
                        await self._confirm(stream, [topic])
                        return
                    except BackendUnavailable:
                        await stream.connection.wait_closed()
        except BackendRefused as error:
            await self.unsubscribe(topic)
            if await self._accepts_others():
                logger.warning("subscriber: topic refused topic=%s error=%s", topic, error)
                raise TopicRefused(topic, str(error)) from error
            raise
        except TimeoutError:
            self._sinks.pop(topic, None)
            raise BackendUnavailable(f"subscription not confirmed (topic {topic})") from None

    async def _accepts_others(self) -> bool:
        """Return True if the server accepts a subscription to a topic that nobody watches."""
        if self._stream is None:
            return False
        connection = self._stream.connection
        try:
            async with asyncio.timeout(self._timeout_seconds):
                subject = self._subjects.live(PROBE_TOPIC)
                number = await connection.subscribe(subject, lambda message: None)
                try:
                    await self._confirm(self._stream, [PROBE_TOPIC])
                finally:
                    await connection.unsubscribe(number)
        except (BackendError, TimeoutError):
            return False
        return True

    async def unsubscribe(self, topic: str) -> None:
        """Stop calling the topic's sink at once, and tell the server if it can be reached."""
        self._sinks.pop(topic, None)
        subscription = self._subscriptions.pop(topic, None)
        if subscription is not None:
            await subscription.end()

    async def _stay_connected(self, stream: Stream) -> None:
        """Renew the connection whenever it breaks, until cancelled."""
        try:
            while True:
                await stream.connection.wait_closed()
                self._stop_using()
                await stream.connection.close()
                logger.warning(
                    "subscriber: connection lost error=%s", stream.connection.error or "closed"
                )
                stream = await self._reconnect()
                self._use(stream)
                logger.info("subscriber: resubscribed topics=%d", len(self._sinks))
                for topic in list(self._interrupted):
                    self._interrupt(topic)
        finally:
            self._stop_using()
            self._end_attempt()
            await stream.connection.close()

    async def _reconnect(self) -> Stream:
        """Return the stream on a new connection, however many attempts that takes."""
        await asyncio.sleep(FIRST_RETRY_SECONDS / 2)
        retrying = AsyncRetrying(
            # On every error: without this task the process would get no events any more.
            retry=retry_if_exception_type(Exception),
            wait=RECONNECT_WAIT,
            after=self._attempt_failed,
        )
        return await retrying(self._connect_and_subscribe)

    def _attempt_failed(self, attempt: RetryCallState) -> None:
        assert attempt.outcome is not None
        error = attempt.outcome.exception()
        assert error is not None
        failure = explain(error)
        if attempt.attempt_number == 1 or str(failure) != str(self._error):
            logger.info("subscriber: not reconnected, trying again error=%s", failure)
        self._error = failure
        self._end_attempt()

    async def _connect_and_subscribe(self) -> Stream:
        """Return the stream on a new connection with all subscriptions."""
        stream = await self._connect()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                topics = list(self._sinks)
                self._interrupted = set(topics)
                for topic in topics:
                    await self._request(stream, topic)
                await self._confirm(stream, topics)
        except BaseException:
            # The subscriptions end with the connection.
            self._subscriptions.clear()
            await stream.connection.close()
            raise
        return stream

    def _use(self, stream: Stream) -> None:
        self._stream = stream
        self._end_attempt()

    def _stop_using(self) -> None:
        self._stream = None
        self._subscriptions.clear()

    def _end_attempt(self) -> None:
        self._attempt_ended.set()
        self._attempt_ended = asyncio.Event()

    async def _request(self, stream: Stream, topic: str) -> None:
        """Send the subscription to a topic, unless it was sent, or the topic is not watched."""
        if topic in self._subscriptions or topic not in self._sinks:
            return
        subscription = _Subscription(self, stream.connection, topic)
        subscription.number = await stream.connection.subscribe(
            self._subjects.live(topic), subscription.receive
        )
        # In the meantime another call may have subscribed, or the connection have broken.
        if topic in self._subscriptions or stream.connection.is_closed:
            await subscription.end()
        else:
            self._subscriptions[topic] = subscription

    def receive(self, topic: str, data: bytes) -> None:
        """Deliver a message of a topic. Called by its subscription."""
        self._interrupt(topic)
        sink = self._sinks.get(topic)
        if sink is not None:
            deliver(topic, sink, data)

    def _interrupt(self, topic: str) -> None:
        """Call the topic's sink with `interrupted`, unless that was done since the last break."""
        if topic in self._interrupted:
            self._interrupted.remove(topic)
            sink = self._sinks.get(topic)
            if sink is not None:
                sink.interrupted(topic)

    async def _confirm(self, stream: Stream, topics: Sequence[str]) -> None:
        subjects = [self._subjects.live(topic) for topic in topics]
        await stream.connection.confirm(subjects, self._subjects.live(">"))


class _Subscription:
    """A topic's subscription on one connection. One small object: there are thousands of them."""

    __slots__ = ("_connection", "_subscriber", "_topic", "number")

    def __init__(self, subscriber: Subscriber, connection: Connection, topic: str) -> None:
        self.number = 0
        """What the connection knows it by."""
        self._subscriber = subscriber
        self._connection = connection
        self._topic = topic

    def receive(self, message: Message) -> None:
        """Deliver a message."""
        # What was received on a connection that is closed may still be delivered.
        if not self._connection.is_closed:
            self._subscriber.receive(self._topic, message.data)

    async def end(self) -> None:
        """Tell the server, if it can be reached."""
        await self._connection.unsubscribe(self.number)


def deliver(topic: str, sink: Sink, data: bytes) -> None:
    """Call ``sink`` for one log message."""
    # Sequence and time are not republished, and a sink needs neither.
    try:
        message = LogMessage.decode(0, 0.0, data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # No writer has published it. If one of theirs was lost, the next offset shows it.
        note("message", topic, "unknown", str(error))
        return
    if message.header.deleted:
        sink.gone(topic)
    elif message.bodies:
        header = message.header
        prev = Cursor(header.epoch, header.offset, header.chain)
        sink.events(topic, prev, list(message.events()))
