"""The connections that read, on one loop: a pool for each node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from semantik_realtime.backends.redis.canary import Canary
from semantik_realtime.backends.redis.nodes import Node, read_redirect
from semantik_realtime.backends.redis.read_pool import ReadPool
from semantik_realtime.backends.redis.refusals import (
    Kind,
    code_of,
    ends_connection,
    explain,
    is_about_keys,
    kind_of,
)
from semantik_realtime.backends.redis.script import Script
from semantik_realtime.backends.redis.topology import Topology
from semantik_realtime.cancellation import keep_cancellation
from semantik_realtime.errors import BackendRefused, BackendUnavailable

READ_CONNECTIONS = 16
"""Most connections for reading to each node, beside the subscriber's."""
PAUSE_SECONDS = 0.05
"""Between two tries while a slot is moved, after the first redirection."""


class Reader:
    """Runs commands that may be repeated safely. From its making to `close` on one loop.

    Args:
        topology: says which node has a key.
        timeout_seconds: deadline of waiting for a free connection, and of being redirected.
        retries: how often redis-py tries again to connect.
    """

    def __init__(self, topology: Topology, timeout_seconds: float, retries: int = 2) -> None:
        self._topology = topology
        self._timeout = timeout_seconds
        self._retries = retries
        # By node, from the first command for it until it is no node any more.
        self._clients: dict[Node, Any] = {}
        self.canaries: dict[Node, Canary] = {}
        """What the writer has written on each node, and its readers must see. Set by the owner."""

    async def run(self, script: Script, keys: Sequence[str], *args: Any) -> Any:
        """Run a script whose keys are in one slot, and return its reply.

        Raises:
            BackendError: it failed, as `explain` says.
        """
        tail = (len(keys), *keys, *args)
        try:
            return await self.execute(keys[0], "EVALSHA", script.sha, *tail)
        except NoScriptError:
            return await self.execute(keys[0], "EVAL", script.source, *tail)

    async def execute(self, key: str, *command: Any) -> Any:
        """Run a command on the node that has ``key``, and return its reply.

        Raises:
            BackendError: it failed, as `explain` says.
            NoScriptError: the node does not know the script.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            node, is_asking = self._node_of(key, await self._topology.find_async()), False
            redirects = 0
            while True:
                try:
                    return await self._send(node, is_asking, command)
                except ResponseError as error:
                    redirect = read_redirect(error, node)
                    if redirect is not None:
                        self._topology.follow(redirect)
                        node, is_asking = redirect.node, redirect.only_once
                    elif code_of(error) != "TRYAGAIN":
                        if kind_of(error) is Kind.WRONG_SERVER:
                            self._topology.doubt(node)
                        raise
                redirects += 1
                if redirects > 1:
                    await asyncio.sleep(PAUSE_SECONDS)
                if asyncio.get_running_loop().time() > deadline:
                    raise BackendUnavailable(f"the slot of {key} is being moved")
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise explain(error) from error

    async def execute_all(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Run a command for each key, in one round trip to each node; return the replies in order.

        Of a cluster it also asks the nodes that have none of the keys whether they are there: a
        part of the topics is away if one of them is.

        In the place of a reply is the error of a key that the server refuses by itself.

        Raises:
            BackendError: one failed, as `explain` says.
        """
        layout = await self._topology.find_async()
        by_node: dict[Node, list[int]] = {}
        for place, (key, _) in enumerate(calls):
            by_node.setdefault(self._node_of(key, layout), []).append(place)
        if layout.is_cluster:
            by_node = {node: by_node.get(node, []) for node in layout.nodes}
        replies: list[Any] = [None] * len(calls)

        async def run(node: Node, places: list[int]) -> None:
            pipeline = self.client(node).pipeline(transaction=False)
            for place in places:
                pipeline.execute_command(*calls[place][1])
            if not places:
                pipeline.execute_command("PING")
            try:
                found = await pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                self._topology.doubt(node)
                raise explain(error) from error
            for place, reply in zip(places, found, strict=bool(places)):
                if isinstance(reply, ResponseError):
                    # Redirected, or refused for good.
                    key, command = calls[place]
                    try:
                        reply = await self.execute(key, *command)
                    except BackendRefused as error:
                        if error.__cause__ is None or not is_about_keys(error.__cause__):
                            raise
                        reply = error
                replies[place] = reply

        if len(by_node) == 1:
            [(node, places)] = by_node.items()
            await run(node, places)
        else:
            runs = [run(node, places) for node, places in by_node.items()]
            for failure in await asyncio.gather(*runs, return_exceptions=True):
                if failure is not None:
                    raise failure
        return replies

    async def scan(
        self, node: Node, cursor: int, pattern: str, count: int
    ) -> tuple[int, list[bytes]]:
        """Do one step of a search for keys on a node; return the next cursor and the keys.

        Raises:
            BackendError: it failed, as `explain` says.
        """
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", count)
        try:
            following, keys = await self._send(node, False, command)
        except (RedisError, OSError) as error:
            raise explain(error) from error
        return int(following), keys

    def client(self, node: Node) -> Any:
        """Return the client of a node; its connections belong to this object."""
        client = self._clients.get(node)
        if client is None:
            pool = self._topology.pool(
                node,
                ReadPool,
                max_connections=READ_CONNECTIONS,
                timeout=self._timeout,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), self._retries),
                retry_on_error=[RedisConnectionError, RedisTimeoutError],
            )
            pool.canary_of = lambda: self.canaries.get(node)
            client = self._clients[node] = redis.asyncio.Redis(connection_pool=pool)
        return client

    def renew(self, node: Node) -> None:
        """Connect every connection to a node again before it is used."""
        if (client := self._clients.get(node)) is not None:
            client.connection_pool.renew()

    async def keep(self, nodes: Sequence[Node]) -> None:
        """Close the connections to all other nodes."""
        for node in set(self._clients) - set(nodes):
            await self._close(self._clients.pop(node))

    async def close(self) -> None:
        """Close all connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await self._close(client)

    async def _send(self, node: Node, is_asking: bool, command: tuple[Any, ...]) -> Any:
        client = self.client(node)
        try:
            if not is_asking:
                return await client.execute_command(*command)
            pipeline = client.pipeline(transaction=False)
            pipeline.execute_command("ASKING")
            pipeline.execute_command(*command)
            _, reply = await pipeline.execute(raise_on_error=False)
        except ResponseError as error:
            if ends_connection(error):
                client.connection_pool.renew()
            raise
        except (RedisError, OSError):
            self._topology.doubt(node)
            raise
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _node_of(self, key: str, layout: Any) -> Node:
        node: Node | None = layout.node_of(key)
        if node is None:
            self._topology.doubt(layout.nodes[0])
            raise BackendUnavailable("no node of the cluster serves the slot of a topic")
        return node

    @staticmethod
    async def _close(client: Any) -> None:
        with contextlib.suppress(RedisError, OSError):
            await keep_cancellation(client.connection_pool.disconnect())
