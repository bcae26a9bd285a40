"""Live events: one subscription a watched topic, on one connection, kept alive for ever."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable
from semantik_realtime.hookspecs import Sink

from semantik_realtime_nats.ledger import Message
from semantik_realtime_nats.link import Link, explain
from semantik_realtime_nats.settings import Names

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 1.0


class Subscriber:
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
        self._tried = asyncio.Event()
        """Set when a try to connect is over, whatever came of it; each has one of its own."""
        self._error: BackendError = BackendUnavailable("not connected")
        """Why the last try failed."""
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

    async def link(self) -> Link:
        """The connection of now, or of the next try, a second later at most.

        Raises:
            BackendError: there is none.
        """
        if self.current is None or self.current.closed.is_set():
            await self._tried.wait()
        if self.current is None:
            raise type(self._error)(str(self._error))
        return self.current

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """Returns when the server has confirmed.

        Raises:
            BackendUnavailable: not in time. The topic is not subscribed.
            BackendRefused: the user may not. The topic is not subscribed.
        """
        self._sinks[topic] = sink
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    link = self.current
                    if link is None or link.closed.is_set():
                        await self._tried.wait()
                        continue
                    try:
                        await self._follow(link, topic)
                        await self._confirm(link, [topic])
                        return
                    except BackendUnavailable:
                        await link.closed.wait()
        except BackendRefused:
            await self.unsubscribe(topic)
            raise
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
        try:
            while True:
                await link.closed.wait()
                self._end()
                await link.close()
                logger.warning("feed: broken error=%s", link.error or "closed")
                for failed in itertools.count():
                    await asyncio.sleep(pause_seconds(failed, random.random()))  # noqa: S311
                    try:
                        link = await self._renew()
                        break
                    except Exception as error:
                        # Whatever it was, a feed that does not come back would be worse.
                        self._error = explain(error)
                        logger.info("feed: still broken error=%s", self._error)
                    self._end_try()
                self._begin(link)
                logger.info("feed: subscribed again topics=%d", len(self._sinks))
                for topic, sink in list(self._sinks.items()):
                    sink.interrupted(topic)
        finally:
            self._end()
            self._end_try()
            await link.close()

    def _begin(self, link: Link) -> None:
        link.dropped = self._dropped
        self.current = link
        self._end_try()

    def _end(self) -> None:
        self.current = None
        self._stops.clear()

    def _end_try(self) -> None:
        self._tried.set()
        self._tried = asyncio.Event()

    async def _renew(self) -> Link:
        """A new connection on which everything is subscribed."""
        link = await self._connect()
        try:
            async with asyncio.timeout(self._timeout):
                topics = list(self._sinks)
                for topic in topics:
                    await self._follow(link, topic)
                await self._confirm(link, topics)
        except BaseException:
            # What was subscribed on it is not subscribed on the next one.
            self._stops.clear()
            await link.close()
            raise
        return link

    async def _confirm(self, link: Link, topics: Sequence[str]) -> None:
        subjects = [self._names.live(topic) for topic in topics]
        await link.confirm(subjects, self._names.live_of(">"))

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


def pause_seconds(failed: int, chance: float) -> float:
    """How long to wait after so many tries that failed; ``chance`` is in 0 to 1.

    >>> [pause_seconds(failed, 1) for failed in range(6)]
    [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    """
    longest = min(FIRST_RETRY_SECONDS * (1 << min(failed, 10)), LAST_RETRY_SECONDS)
    # Those who lost a server together do not come back together.
    return longest * (0.5 + chance / 2)
