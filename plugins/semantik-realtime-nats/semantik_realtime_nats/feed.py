"""Live events: one subscription a watched topic, on one connection, kept alive for ever."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Sink

from semantik_realtime_nats.ledger import Message
from semantik_realtime_nats.link import Link, explain
from semantik_realtime_nats.settings import Names

logger = logging.getLogger(__name__)

LAST_RETRY_SECONDS = 5.0


class Feed:
    """Carries what the server republishes to sinks.

    Owns the connection for reading and the task that renews it. After a break
    everything is subscribed again, confirmed, and then every sink hears
    `Sink.interrupted`.
    """

    def __init__(
        self, names: Names, connect: Callable[[], Awaitable[Link]], timeout_seconds: float
    ) -> None:
        self._names = names
        self._connect = connect
        self._timeout = timeout_seconds
        self._sinks: dict[str, Sink] = {}
        self._stops: dict[str, Callable[[], Awaitable[None]]] = {}
        """What ends a topic's subscription on the connection of now."""
        self.current: Link | None = None
        """The connection of now; None while there is none."""
        self._up = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect and keep connected.

        Raises:
            BackendError: the first connection failed; nothing runs.
        """
        link = await self._connect()
        self._begin(link)
        self._keeping = asyncio.create_task(self._keep(link), name="semantik-realtime-feed")

    async def close(self) -> None:
        """End the task and the connection."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._sinks.clear()

    def link(self) -> Link:
        """The connection of now.

        Raises:
            BackendUnavailable: there is none.
        """
        if self.current is None:
            raise BackendUnavailable("not connected")
        return self.current

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """Returns when the server has confirmed.

        Raises:
            BackendUnavailable: not in time. The topic is not subscribed.
        """
        self._sinks[topic] = sink
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    await self._up.wait()
                    link = self.link()
                    try:
                        await self._follow(link, topic)
                        await link.flush()
                        return
                    except BackendUnavailable:
                        await link.closed.wait()
        except TimeoutError:
            self._sinks.pop(topic, None)
            raise BackendUnavailable(f"subscription not confirmed (topic {topic})") from None

    async def unsubscribe(self, topic: str) -> None:
        """Stop at once; the server learns of it when it can."""
        self._sinks.pop(topic, None)
        stop = self._stops.pop(topic, None)
        if stop is not None:
            await stop()

    async def _keep(self, link: Link) -> None:
        """Stay connected, with one connection after the other."""
        retry_seconds = 0.0
        try:
            while True:
                await link.closed.wait()
                self._end()
                await link.close()
                logger.warning("feed: broken")
                while True:
                    retry_seconds = min(max(0.1, retry_seconds * 2), LAST_RETRY_SECONDS)
                    await asyncio.sleep(retry_seconds * random.uniform(0.5, 1))  # noqa: S311
                    try:
                        link = await self._connect()
                    except Exception as error:
                        # Whatever it was, a feed that does not come back would be worse.
                        logger.info("feed: still broken error=%s", explain(error))
                        continue
                    if await self._follow_all(link):
                        break
                    await link.close()
                retry_seconds = 0.0
                self._begin(link)
                logger.info("feed: subscribed again topics=%d", len(self._sinks))
                for topic, sink in list(self._sinks.items()):
                    sink.interrupted(topic)
        finally:
            self._end()
            await link.close()

    def _begin(self, link: Link) -> None:
        link.dropped = self._dropped
        self.current = link
        self._up.set()

    def _end(self) -> None:
        self.current = None
        self._up.clear()
        self._stops.clear()

    async def _follow_all(self, link: Link) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                for topic in list(self._sinks):
                    await self._follow(link, topic)
                await link.flush()
        except (BackendUnavailable, TimeoutError):
            return False
        return True

    async def _follow(self, link: Link, topic: str) -> None:
        if topic in self._stops or topic not in self._sinks:
            return

        def take(data: bytes) -> None:
            sink = self._sinks.get(topic)
            if sink is not None:
                self._deliver(topic, sink, data)

        stop = await link.subscribe(self._names.live(topic), take)
        if topic in self._stops or link.closed.is_set():
            await stop()
        else:
            self._stops[topic] = stop

    @staticmethod
    def _deliver(topic: str, sink: Sink, data: bytes) -> None:
        # Neither is needed to read it: the server told us at once.
        message = Message.decode(0, 0.0, data)
        if message.head.deleted:
            sink.gone(topic)
        elif message.bodies:
            sink.events(topic, message.head.epoch, message.head.offset, list(message.events()))

    def _dropped(self, subject: str) -> None:
        for topic, sink in list(self._sinks.items()):
            if self._names.live(topic) == subject:
                sink.interrupted(topic)
