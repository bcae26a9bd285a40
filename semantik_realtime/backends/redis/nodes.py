"""Servers, and which of them has which keys. No I/O.

A *node* is one server process. A standalone server and a master that Sentinel
names are one node with all keys. In a cluster each key has one of 16384 slots,
given by the part of its name in braces, and each slot is served by one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot

from semantik_realtime.backends.redis.refusals import code_of, redirection_of


class Node(NamedTuple):
    """The address of a server process."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Moved(Exception):
    """A node does not have, or no longer has, the topic that is subscribed."""


class Layout:
    """Which node has which keys, as far as it is known. Its nodes do not change.

    Args:
        nodes: those that accept writes; one, unless it is a cluster.
        owners: of a cluster, the node of each slot, or None for a slot that no node serves.
    """

    def __init__(self, nodes: Sequence[Node], owners: Sequence[Node | None] | None = None) -> None:
        self.nodes = tuple(nodes)
        self._owners = None if owners is None else list(owners)

    @property
    def is_cluster(self) -> bool:
        """Whether keys have slots, and events are published in shards."""
        return self._owners is not None

    def node_of(self, key: str) -> Node | None:
        """Return the node of a key or channel; None: no node serves its slot."""
        if self._owners is None:
            return self.nodes[0]
        return self._owners[slot_of(key)]

    def moved(self, slot: int, node: Node) -> Layout:
        """Return the layout of a cluster after a slot has moved to ``node``."""
        assert self._owners is not None
        owners = list(self._owners)
        owners[slot] = node
        nodes = self.nodes if node in self.nodes else (*self.nodes, node)
        return Layout(nodes, owners)


def slot_of(key: str) -> int:
    """Return the slot of a key or channel.

    >>> slot_of("semantik:{job:1}:log") == slot_of("semantik:{job:1}") == slot_of("job:1")
    True
    """
    return key_slot(key.encode())


def read_slots(reply: Iterable[Sequence[Any]], asked: Node) -> Layout:
    """Return what ``CLUSTER SLOTS`` replied.

    Args:
        reply: a list of ``[first slot, last slot, [host, port, …], …]``, the master first.
        asked: the node that replied. It leaves the host out where it does not know its own.

    >>> layout = read_slots([[0, 16383, [b"10.0.0.1", 7000, b"id"]]], Node("seed", 6379))
    >>> layout.nodes
    (Node(host='10.0.0.1', port=7000),)
    """
    owners: list[Node | None] = [None] * SLOTS
    nodes: dict[Node, None] = {}
    for first, last, master, *_ in reply:
        host = master[0].decode() if master[0] else ""
        # Such a node has not learned the address of another one yet.
        node = Node(asked.host if host in ("", "?") else host, int(master[1]))
        nodes[node] = None
        owners[first : last + 1] = [node] * (last + 1 - first)
    return Layout(tuple(nodes), owners)


class Redirect(NamedTuple):
    """Where a node of a cluster sends a command that it did not run."""

    slot: int
    node: Node
    only_once: bool
    """The slot is being moved: the next command for it begins at its owner again."""


def read_redirect(error: object, asked: Node) -> Redirect | None:
    """Return the redirection of a reply of ``asked``; None if it is none."""
    if not isinstance(error, Exception) or (found := redirection_of(error)) is None:
        return None
    slot, host, port = found
    return Redirect(slot, Node(host or asked.host, port), code_of(error) == "ASK")
