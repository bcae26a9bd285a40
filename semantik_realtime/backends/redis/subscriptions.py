"""The subscriptions of all topics: a `Subscriber` for each node, and which topic is where."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from semantik_realtime.backends.redis.canary import Canary
from semantik_realtime.backends.redis.nodes import Layout, Moved, Node
from semantik_realtime.backends.redis.reader import Reader
from semantik_realtime.backends.redis.refusals import explain
from semantik_realtime.backends.redis.send import publish_anew
from semantik_realtime.backends.redis.subscriber import CANARY_TOPIC, Subscriber
from semantik_realtime.backends.redis.topology import MASTER_SECONDS, Topology
from semantik_realtime.backends.redis.writer import Writer
from semantik_realtime.backoff import Backoff
from semantik_realtime.cancellation import keep_cancellation, stop_tasks
from semantik_realtime.errors import BackendError, BackendUnavailable
from semantik_realtime.hookspecs import Sink

FIRST_LOOK_SECONDS = 0.05
LAST_LOOK_SECONDS = 0.5
"""Between two looks for the nodes while one fails."""
LOOK_SECONDS = 5.0
"""Between two looks for the nodes of a cluster that all answer."""
MAX_CANARIES = 50_000
"""How many channels are tried to find one that a node has; with a single slot it has one of 16384.
"""


class Subscriptions:
    """Delivers published events to sinks. Lives on one loop.

    A server that is no cluster has one `Subscriber`. It moves with the master
    that the sentinels name. In a cluster each master has one, with the topics of
    its slots, because an event is published only to the subscribers of its node.
    One task looks for the nodes, and moves topics whose node has changed.

    Args:
        topology: says which node has a topic.
        reader: gets the canaries, to compare them.
        writer: writes the canaries.
        channel_of: the channel of a topic.
        timeout_seconds: deadline of connecting, of a command and of its confirmation.
    """

    def __init__(
        self,
        topology: Topology,
        reader: Reader,
        writer: Writer,
        channel_of: Callable[[str], str],
        timeout_seconds: float,
    ) -> None:
        self._topology = topology
        self._reader = reader
        self._writer = writer
        self._channel_of = channel_of
        self._timeout = timeout_seconds
        self._subscribers: dict[Node, Subscriber] = {}
        # The sink of each topic that is subscribed or about to be.
        self._sinks: dict[str, Sink] = {}
        # Set when a node fails or gives topics away, so that the nodes are looked for at once.
        self._look = asyncio.Event()
        self._backoff = Backoff(FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS)
        self._look_seconds = LOOK_SECONDS
        self._task: asyncio.Task[None] | None = None

    @property
    def subscribers(self) -> list[Subscriber]:
        """The subscriber of each node."""
        return list(self._subscribers.values())

    async def open(self) -> None:
        """Connect to all nodes, and stay connected until `close`.

        Raises:
            BackendError: the nodes are not known, or a first connection failed; no task runs.
        """
        layout = await self._topology.find_async()
        made = {node: self._make(node, layout) for node in layout.nodes}
        opened = await asyncio.gather(
            *[one.open() for one in made.values()], return_exceptions=True
        )
        for node, failure in zip(made, opened, strict=True):
            if isinstance(failure, BaseException):
                self._topology.doubt(node)
                await asyncio.gather(*[one.close() for one in made.values()])
                if isinstance(failure, RedisError | OSError | TimeoutError):
                    raise explain(failure) from failure
                raise failure
        self._subscribers = made
        self._look_seconds = LOOK_SECONDS if layout.is_cluster else MASTER_SECONDS
        if layout.is_cluster or self._topology.has_sentinels:
            self._task = asyncio.create_task(self._follow(), name="semantik-realtime-nodes")

    async def close(self) -> None:
        """End the tasks and the connections; no sink is called any more."""
        self._sinks.clear()
        task, self._task = self._task, None
        if task is not None:
            await stop_tasks([task])
        subscribers, self._subscribers = self._subscribers, {}
        await asyncio.gather(*[one.close() for one in subscribers.values()])

    async def subscribe(self, topic: str, sink: Sink) -> None:
        """Subscribe, and return when the server has confirmed. Replaces the topic's sink.

        Raises:
            BackendUnavailable: no confirmation in time; the topic is not subscribed.
        """
        self._sinks[topic] = sink
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    with contextlib.suppress(Moved):
                        return await self._subscriber_of(topic).subscribe(topic, sink)
                    await self._topology.find_async(afresh=True)
                    if self._sinks.get(topic) is not sink:
                        raise BackendUnavailable(f"unsubscribed (topic {topic})")
        except TimeoutError:
            if self._sinks.get(topic) is sink:
                await self.unsubscribe(topic)
            raise BackendUnavailable(f"subscription not confirmed (topic {topic})") from None

    async def unsubscribe(self, topic: str) -> None:
        """Stop calling the topic's sink at once, and tell the server if it can be reached."""
        self._sinks.pop(topic, None)
        for subscriber in self.subscribers:
            await subscriber.unsubscribe(topic)

    # As the owner of the subscribers.

    def failed(self, subscriber: Subscriber) -> None:
        for node, one in self._subscribers.items():
            if one is subscriber:
                self._topology.doubt(node)
        self._look.set()

    def moved(self, subscriber: Subscriber) -> None:
        self._look.set()

    # Inside.

    def _make(self, node: Node, layout: Layout) -> Subscriber:
        pool = self._topology.pool(node, redis.asyncio.ConnectionPool)
        # It reads without a deadline; its canary finds a dead connection.
        options = {**pool.connection_kwargs, "socket_timeout": None}

        def connect() -> Any:
            return pool.connection_class(**options)

        async def publish(channel: str, text: str) -> None:
            if layout.is_cluster:
                await self._reader.execute(channel, "SPUBLISH", channel, text)
            else:
                # A new connection leads to where the address leads now.
                async with asyncio.timeout(self._timeout):
                    await publish_anew(connect(), channel, text)

        canary = self._reader.canaries[node] = Canary(
            self._writer,
            publish,
            lambda: self._make_canary(node),
            self._timeout,
            is_sharded=layout.is_cluster,
            lost=lambda: self._reader.renew(node),
        )
        return Subscriber(
            connect,
            canary,
            self._channel_of,
            self._timeout,
            is_sharded=layout.is_cluster,
            owner=self,
        )

    def _make_canary(self, node: Node) -> str | None:
        """Return a channel that ``node`` has, for a canary; None: it has none."""
        token, layout = secrets.token_hex(6), self._topology.layout
        if layout is None or not layout.is_cluster:
            return self._channel_of(CANARY_TOPIC + token)
        if node not in layout.nodes:
            return None
        # One in three fits with three nodes.
        channels = (self._channel_of(f"{CANARY_TOPIC}{token}{n}") for n in itertools.count())
        tried = itertools.islice(channels, MAX_CANARIES)
        return next((channel for channel in tried if layout.node_of(channel) == node), None)

    def _subscriber_of(self, topic: str) -> Subscriber:
        layout = self._topology.layout
        node = None if layout is None else layout.node_of(self._channel_of(topic))
        if layout is None or node is None:
            raise BackendUnavailable(f"no node of the cluster has the topic {topic}")
        return self._subscriber(node, layout)

    def _subscriber(self, node: Node, layout: Layout) -> Subscriber:
        found = self._subscribers.get(node)
        if found is None:
            found = self._subscribers[node] = self._make(node, layout)
            found.start()
        return found

    async def _follow(self) -> None:
        """Look for the nodes every few seconds, and soon after one has failed."""
        while True:
            if self._look.is_set():
                await asyncio.sleep(self._backoff.next_seconds())
            else:
                self._backoff.reset()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_seconds):
                        await self._look.wait()
            self._look.clear()
            with contextlib.suppress(BackendError):
                layout = await keep_cancellation(self._topology.find_async(afresh=True))
                await self._settle(layout)

    async def _settle(self, layout: Layout) -> None:
        """Move each topic to the subscriber of its node, and end those of former nodes."""
        for node, subscriber in list(self._subscribers.items()):
            homes: dict[Node, dict[str, Sink]] = {}
            for topic, sink in subscriber.release(_belongs_to(node, layout)).items():
                # Where no node has its slot, it waits here for one.
                home = layout.node_of(self._channel_of(topic)) or node
                homes.setdefault(home, {})[topic] = sink
            for home, sinks in homes.items():
                await self._subscriber(home, layout).adopt(sinks)
        for node in set(self._subscribers) - set(layout.nodes):
            self._reader.canaries.pop(node, None)
            await self._subscribers.pop(node).close()
        await self._reader.keep(layout.nodes)


def _belongs_to(node: Node, layout: Layout) -> Callable[[str], bool]:
    """Return a function that says whether a channel is of ``node``, or of none."""
    return lambda channel: layout.node_of(channel) in (node, None)
