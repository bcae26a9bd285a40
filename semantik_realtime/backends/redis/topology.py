"""Finds out which nodes there are: asks the server, the sentinels, or the nodes of a cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from semantik_realtime.backends.redis.address import CLUSTER, SENTINEL, Address
from semantik_realtime.backends.redis.nodes import Layout, Node, Redirect, read_slots
from semantik_realtime.backends.redis.refusals import explain
from semantik_realtime.backends.redis.send import send_all, send_all_async
from semantik_realtime.cancellation import keep_cancellation
from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable

logger = logging.getLogger(__name__)

MASTER_SECONDS = 2.0
"""How long the answer of a sentinel is believed. A master that was replaced while its connections
stay open says nothing about it, until it knows of it itself."""
ASK_SECONDS = 1.0
"""Deadline of connecting to a sentinel or a node that is asked, and of its reply, at most."""
LOWEST_CLUSTER_VERSION = 7
"""The first version with channels that belong to a slot."""


class Question(NamedTuple):
    """What to ask a server."""

    node: Node
    is_sentinel: bool
    commands: Sequence[tuple[str, ...]]


class _MasterDown(BackendUnavailable):
    """The sentinels know the master, and say that it is dead."""


Pool = TypeVar("Pool", bound=redis.asyncio.ConnectionPool)
Search = Generator[Question, list[Any] | Exception, Layout]


class Topology:
    """What is known of the nodes, for all threads and loops of a process.

    Args:
        address: of the backend.
        timeout_seconds: deadline of connecting and of each reply.
    """

    def __init__(self, address: Address, timeout_seconds: float) -> None:
        self._address = address
        self._kind = address.kind
        self._timeout = timeout_seconds
        self._ask_seconds = min(timeout_seconds, ASK_SECONDS)
        pool = redis.ConnectionPool.from_url(
            address.url,
            protocol=2,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self.connection_options: dict[str, Any] = pool.connection_kwargs
        """The options of a blocking connection to the first node."""
        self._connection_class: Any = pool.connection_class
        # Where the URL leads. That may be the path of a socket, or a name that follows the master.
        self._home = Node(
            str(self.connection_options.get("host", "localhost")),
            int(self.connection_options.get("port", 6379)),
        )
        # Replaced as a whole, from any thread.
        self._layout: Layout | None = None
        # When it was found out, on the monotonic clock.
        self._found_at = 0.0
        # A node that failed since then; it is asked last.
        self._doubted: Node | None = None
        # The sentinel or node that answered last; it is asked first.
        self._guide: Node | None = None
        # Whether the last search failed: each failure is logged once.
        self._fails = False

    @property
    def home(self) -> Node:
        """The host and the port in the URL, the first of several."""
        return self._home

    @property
    def has_sentinels(self) -> bool:
        """Whether sentinels name the server."""
        return self._kind == SENTINEL

    @property
    def layout(self) -> Layout | None:
        """What is known; None before the first `find`."""
        return self._layout

    def find(self) -> Layout:
        """Return where the keys are. Blocks while a server is asked, if one is.

        Raises:
            BackendError: nothing is known yet, and nobody could be asked.
        """
        if (known := self._known()) is not None:
            return known
        search = self._search()
        try:
            question = next(search)
            while True:
                question = search.send(self._ask(question))
        except StopIteration as end:
            return self._found(end.value)
        except BackendError as error:
            return self._not_found(error)

    async def find_async(self, *, afresh: bool = False) -> Layout:
        """Do as `find`, without blocking; ``afresh``: even if the known layout is young."""
        if not afresh and (known := self._known()) is not None:
            return known
        search = self._search()
        try:
            question = next(search)
            while True:
                question = search.send(await self._ask_async(question))
        except StopIteration as end:
            return self._found(end.value)
        except BackendError as error:
            return self._not_found(error)

    def doubt(self, node: Node) -> None:
        """Note that a node failed, so that the next `find` asks."""
        self._doubted = node

    def follow(self, redirect: Redirect) -> None:
        """Note where a node says that a slot is now; the next `find` asks for all others."""
        layout = self._layout
        if layout is not None and layout.is_cluster and not redirect.only_once:
            self._layout = layout.moved(redirect.slot, redirect.node)
            self._found_at = 0.0

    # Connections.

    def connection(self, node: Node) -> Any:
        """Make a blocking connection to a node; it is not connected yet."""
        return self._connection_class(**self.connection_options | self._place(node))

    def pool(self, node: Node, kind: type[Pool], **options: Any) -> Pool:
        """Make a pool of asyncio connections to a node, of a subclass of redis-py's."""
        pool: Pool = kind.from_url(
            self._address.url,
            protocol=2,
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            **options,
        )
        pool.connection_kwargs.update(self._place(node))
        return pool

    def _place(self, node: Node) -> dict[str, Any]:
        return {} if node == self._home else node._asdict()

    # Finding out.

    def _known(self) -> Layout | None:
        layout = self._layout
        if layout is None or not self._kind:
            # One server that is no node of a cluster stays what it is.
            return layout
        if self._doubted is not None or self._found_at == 0.0:
            return None
        is_old = time.monotonic() - self._found_at > MASTER_SECONDS
        return None if self._kind == SENTINEL and is_old else layout

    def _found(self, layout: Layout) -> Layout:
        before, self._layout = self._layout, layout
        self._found_at, self._doubted, self._fails = time.monotonic(), None, False
        if before is not None and before.nodes != layout.nodes:
            logger.info(
                "nodes: changed from=%s to=%s",
                ",".join(map(str, before.nodes)),
                ",".join(map(str, layout.nodes)),
            )
        return layout

    def _not_found(self, error: BackendError) -> Layout:
        layout = self._layout
        if layout is None or isinstance(error, BackendRefused | _MasterDown):
            raise error
        # The master may work while its sentinels are away.
        self._found_at, self._doubted = time.monotonic(), None
        if not self._fails:
            self._fails = True
            logger.warning("nodes: not found out, the known ones stay error=%s", error)
        return layout

    def _search(self) -> Search:
        if self._kind == SENTINEL:
            return (yield from self._search_master())
        if not self._kind:
            hello = [("HELLO",)]
            replies = yield Question(self._home, False, hello)
            if isinstance(replies, Exception):
                raise explain(replies)
            mode = _pairs(replies[0]).get("mode", "")
            if mode == SENTINEL:
                raise BackendRefused(
                    f"{self._home} is a sentinel, not a Redis server; write the URL as "
                    f"redis+sentinel://{self._home}/NAME with the name of the master"
                )
            if mode != CLUSTER:
                return Layout([self._home])
            self._kind = CLUSTER
        return (yield from self._search_cluster())

    def _search_master(self) -> Search:
        error: Exception | None = None
        down: Node | None = None
        name = self._address.master
        ask = [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name), ("SENTINEL", "MASTER", name)]
        for sentinel in self._in_order(self._address.places):
            replies = yield Question(sentinel, True, ask)
            if isinstance(replies, Exception):
                error = error or replies
                continue
            address, facts = replies
            if not isinstance(address, list):
                error = address if isinstance(address, Exception) else error
                continue
            self._guide = sentinel
            master = Node(address[0].decode(), int(address[1]))
            if not _is_down(master, _pairs(facts)):
                return Layout([master])
            down = master
        places = ", ".join(map(str, self._address.places))
        if down is not None:
            # It may be alive and cut off: what it accepts now is lost when it is replaced.
            raise _MasterDown(f"the sentinels {places} take the master {down} for dead")
        if error is None:
            # All of them answered.
            raise BackendRefused(f'the sentinels {places} know no master "{name}"')
        raise _no_answer(f"no sentinel of {places} names the master", error)

    def _search_cluster(self) -> Search:
        error: Exception | None = None
        known = self._layout.nodes if self._layout is not None else ()
        for node in self._in_order([*known, *(self._address.places or [self._home])]):
            replies = yield Question(node, False, [("HELLO",), ("CLUSTER", "SLOTS")])
            if isinstance(replies, Exception):
                error = error or replies
                continue
            hello, slots = replies
            version = _pairs(hello).get("version", "")
            if version and int(version.split(".")[0]) < LOWEST_CLUSTER_VERSION:
                raise BackendRefused(
                    f"{node} is a node of a cluster and has version {version}: a cluster needs "
                    f"{LOWEST_CLUSTER_VERSION} or newer (see docs/choosing-an-engine.md)"
                )
            if isinstance(slots, Exception):
                error = error or slots
                continue
            layout = read_slots(slots, node)
            if layout.nodes:
                self._guide = node
                return layout
        raise _no_answer("no node of the cluster knows the others", error)

    def _in_order(self, nodes: Sequence[Node]) -> list[Node]:
        """Return nodes each once: the one that answered last first, one that failed last."""
        unique = dict.fromkeys(nodes)
        return sorted(unique, key=lambda node: (node == self._doubted, node != self._guide))

    def _ask(self, question: Question) -> list[Any] | Exception:
        connection = None
        try:
            connection = self._asking(redis.ConnectionPool, Retry(NoBackoff(), 0), question)
            connection.connect()
            return send_all(connection, question.commands)
        except (RedisError, OSError) as error:
            return error
        finally:
            if connection is not None:
                connection.disconnect()

    async def _ask_async(self, question: Question) -> list[Any] | Exception:
        connection = None
        try:
            retry = AsyncRetry(NoBackoff(), 0)
            connection = self._asking(redis.asyncio.ConnectionPool, retry, question)
            await keep_cancellation(connection.connect())
            return await keep_cancellation(send_all_async(connection, question.commands))
        except (RedisError, OSError, TimeoutError) as error:
            return error
        finally:
            if connection is not None:
                await connection.disconnect(nowait=True)

    def _asking(self, kind: Any, retry: Any, question: Question) -> Any:
        """Make a connection for a question; it is not connected yet."""
        address = self._address
        is_only = not self._kind
        seconds = self._timeout if is_only else self._ask_seconds
        pool = kind.from_url(
            address.sentinel_url if question.is_sentinel else address.url,
            protocol=2,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=retry,
        )
        options = pool.connection_kwargs | (
            question.node._asdict() if question.is_sentinel else self._place(question.node)
        )
        return pool.connection_class(**options)


def _pairs(reply: Any) -> dict[str, str]:
    """Return the names and values of a reply; empty for an error: not known, or not allowed."""
    if not isinstance(reply, list):
        return {}
    return {_text(name): _text(value) for name, value in zip(reply[::2], reply[1::2], strict=False)}


def _is_down(master: Node, facts: dict[str, str]) -> bool:
    """Return True if a sentinel takes a master for dead, and has no other one yet."""
    flags = facts.get("flags", "").split(",")
    is_it = (facts.get("ip"), facts.get("port")) == (master.host, str(master.port))
    return is_it and not {"s_down", "o_down"}.isdisjoint(flags)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _no_answer(text: str, error: Exception | None) -> BackendError:
    if error is None:
        return BackendUnavailable(text)
    cause = explain(error)
    return type(cause)(f"{text}: {cause}")
