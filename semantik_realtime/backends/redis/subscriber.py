"""Live events: one subscription a watched topic, on one connection, kept alive for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

from semantik_realtime.core.event import Event
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Sink

logger = logging.getLogger(__name__)

CANARY_SECONDS = 5.0
SUBSCRIBE_CHUNK = 500
LAST_RETRY_SECONDS = 1.0


class Subscriber:
    """Carries published batches to sinks.

    Owns one connection and two tasks: one reads, one publishes a canary every
    few seconds and cuts the connection when it does not come back. After a
    break everything is subscribed again, confirmed, and then every sink hears
    `Sink.interrupted`.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        publish: Callable[[str, str], Awaitable[object]],
        channel_of: Callable[[str], str],
        timeout_seconds: float,
    ) -> None:
        self._connect = connect
        self._publish = publish
        self._channel_of = channel_of
        self._timeout = timeout_seconds
        self._sinks: dict[bytes, tuple[str, Sink]] = {}
        self._asked: Counter[bytes] = Counter()
        """SUBSCRIBEs on their way. Only the last one's confirmation counts: a topic may have
        been left and taken up again meanwhile, and the server goes through all of it."""
        self._confirmed: set[bytes] = set()
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._canary = channel_of("canary:" + secrets.token_hex(6)).encode()
        self._canary_seen = asyncio.Event()
        self._connection: Any = None
        self._reading: asyncio.Timeout | None = None
        self._sending = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._up = asyncio.Event()

    async def open(self) -> None:
        """Connect and keep connected.

        Raises:
            RedisError, OSError: the first connection failed; nothing runs.
        """
        connection = self._connect()
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()
        except BaseException:
            await self._disconnect(connection)
            raise
        self._tasks = [
            asyncio.create_task(self._keep(connection), name="semantik-realtime-feed"),
            asyncio.create_task(self._watch(), name="semantik-realtime-canary"),
        ]

    async def close(self) -> None:
        """End the tasks and the connection."""
        self._sinks.clear()
        while self._tasks:
            # redis-py can lose a cancellation (until Python 3.12): again, until it is heard.
            for task in self._tasks:
                task.cancel()
            _, running = await asyncio.wait(self._tasks, timeout=0.1)
            self._tasks = list(running)

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """Returns when the server has confirmed.

        Raises:
            BackendUnavailable: not in time. The topic is not subscribed.
        """
        channel = self._channel_of(topic).encode()
        self._sinks[channel] = (topic, sink)
        if channel in self._confirmed:
            return
        future = self._waiting.get(channel)
        if future is None:
            future = self._waiting[channel] = asyncio.get_running_loop().create_future()
            await self._send("SUBSCRIBE", channel)
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(future)
        except TimeoutError:
            if self._waiting.get(channel) is future:
                del self._waiting[channel]
                await self.unsubscribe(topic)
            raise BackendUnavailable(f"subscription not confirmed (topic {topic})") from None

    async def unsubscribe(self, topic: str) -> None:
        """Stop at once; the server learns of it when it can."""
        channel = self._channel_of(topic).encode()
        if self._sinks.pop(channel, None) is None:
            return
        self._confirmed.discard(channel)
        # Whoever subscribes from here on asks the server again.
        future = self._waiting.pop(channel, None)
        if future is not None and not future.done():
            future.set_exception(BackendUnavailable(f"unsubscribed meanwhile (topic {topic})"))
        await self._send("UNSUBSCRIBE", channel)

    async def _keep(self, connection: Any) -> None:
        """Read for ever, from one connection after the other."""
        retry_seconds = 0.0
        first = True
        try:
            while True:
                try:
                    async with asyncio.timeout(None) as self._reading:
                        # Not wait_for, which can lose a cancellation (until Python 3.12).
                        async with asyncio.timeout(self._timeout):
                            await connection.connect()
                        await self._resubscribe(connection)
                        if not first:
                            logger.info("feed: subscribed again topics=%d", len(self._sinks))
                            for topic, sink in list(self._sinks.values()):
                                sink.interrupted(topic)
                        first, retry_seconds = False, 0.0
                        while True:
                            self._take(await connection.read_response())
                except Exception as error:
                    # Whatever it was, a listener that does not come back would be worse.
                    if retry_seconds == 0.0:
                        logger.warning("feed: broken error=%r", error)
                self._connection, first = None, False
                self._up.clear()
                await self._disconnect(connection)
                retry_seconds = min(max(0.1, retry_seconds * 2), LAST_RETRY_SECONDS)
                await asyncio.sleep(retry_seconds * random.uniform(0.5, 1))  # noqa: S311
                connection = self._connect()
        finally:
            self._connection = None
            await self._disconnect(connection)

    async def _resubscribe(self, connection: Any) -> None:
        # Whoever subscribes from here on sends for itself.
        self._connection = connection
        self._asked.clear()
        self._confirmed.clear()
        channels = [self._canary, *self._sinks]
        for start in range(0, len(channels), SUBSCRIBE_CHUNK):
            await self._send("SUBSCRIBE", *channels[start : start + SUBSCRIBE_CHUNK])
        outstanding = set(channels)
        async with asyncio.timeout(self._timeout):
            while outstanding:
                message = await connection.read_response()
                self._take(message)
                if message[0] == b"subscribe":
                    outstanding.discard(message[1])
        self._up.set()

    async def _watch(self) -> None:
        while True:
            await self._up.wait()
            connection = self._connection
            self._canary_seen.clear()
            try:
                await self._publish(self._canary.decode(), "canary")
                async with asyncio.timeout(self._timeout):
                    await self._canary_seen.wait()
            except Exception as error:
                logger.warning("feed: canary lost error=%r", error)
                self._cut(connection)
            await asyncio.sleep(CANARY_SECONDS)

    async def _send(self, name: str, *channels: bytes) -> None:
        async with self._sending:
            connection = self._connection
            if connection is None:
                # Whoever connects next subscribes to all there is.
                return
            if name == "SUBSCRIBE":
                self._asked.update(channels)
            try:
                async with asyncio.timeout(self._timeout):
                    await connection.send_command(name, *channels, check_health=False)
            except (RedisError, OSError, TimeoutError):
                self._cut(connection)

    def _cut(self, connection: Any) -> None:
        """Make the reader give ``connection`` up, if it has not done so already."""
        if connection is not None and connection is self._connection:
            assert self._reading is not None
            self._connection = None
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def _disconnect(self, connection: Any) -> None:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout):
                await connection.disconnect(nowait=True)

    def _take(self, message: Any) -> None:
        kind, channel = message[0], message[1]
        if kind == b"message":
            if channel == self._canary:
                self._canary_seen.set()
                return
            found = self._sinks.get(channel)
            if found is not None:
                self._deliver(*found, message[2])
        elif kind == b"subscribe":
            self._asked[channel] -= 1
            if self._asked[channel] > 0 or channel not in self._sinks:
                return
            self._confirmed.add(channel)
            future = self._waiting.pop(channel, None)
            if future is not None and not future.done():
                future.set_result(None)

    @staticmethod
    def _deliver(topic: str, sink: Sink, payload: bytes) -> None:
        if payload == b"gone":
            sink.gone(topic)
            return
        head, *bodies = payload.split(b"\n")
        epoch, prev_text, *chains = head.decode().split(" ")
        prev = int(prev_text)
        sink.events(
            topic,
            epoch,
            prev,
            [
                Event(prev + place, int(chain, 16), body)
                for place, (chain, body) in enumerate(zip(chains, bodies, strict=True), start=1)
            ],
        )
