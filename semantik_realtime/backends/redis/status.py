"""What the nodes say about themselves."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from redis.exceptions import RedisError, ResponseError

from semantik_realtime.backends.redis.nodes import Node
from semantik_realtime.backends.redis.reader import Reader
from semantik_realtime.backends.redis.rights import PublishRight, publish_command
from semantik_realtime.backends.redis.topology import Topology
from semantik_realtime.errors import BackendError
from semantik_realtime.hookspecs import Status
from semantik_realtime.urls import mask_text

SAFE_EVICTION = "noeviction"
"""The maxmemory-policy under which the server deletes no key that has not expired."""


async def read_status(
    topology: Topology, reader: Reader, address: str, right: PublishRight
) -> Status:
    """Ask all nodes; ``address`` is where they were looked for, without what may be secret."""
    ahead: float | None = None
    names: dict[str, None] = {}
    warnings: dict[str, list[Node]] = {}
    node: Node | None = None
    try:
        layout = await topology.find_async(afresh=True)
        for node in layout.nodes:
            client = reader.client(node)
            await client.ping()
            with contextlib.suppress(ResponseError):
                seconds, microseconds = await client.time()
                skew = seconds + microseconds / 1e6 - time.time()
                ahead = skew if ahead is None else max(ahead, skew, key=abs)
            info: dict[str, Any] = {}
            # An ACL may forbid INFO; then its facts stay unknown.
            with contextlib.suppress(ResponseError):
                info = await client.info()
            names[_name_of(info)] = None
            of_user = []
            if node == layout.node_of(right.key):
                of_user = await right.warnings(client, publish_command(layout))
            for warning in (*of_user, *_warnings(info)):
                warnings.setdefault(warning, []).append(node)
    except (RedisError, OSError, BackendError) as error:
        text = mask_text(str(error))
        if node is not None and topology.has_sentinels:
            text = f"the master {node}, by the address that the sentinels announce: {text}"
        elif node is not None and layout.is_cluster:
            text = f"the node {node}, by the address that the cluster announces: {text}"
        return Status("redis", False, text, address=address)
    server = ", ".join(names)
    if layout.is_cluster:
        server += f", a cluster of {len(layout.nodes)} masters"
    elif topology.has_sentinels:
        server += f", master {layout.nodes[0]}"
    texts = [
        text if len(nodes) == len(layout.nodes) else f"{', '.join(map(str, nodes))}: {text}"
        for text, nodes in warnings.items()
    ]
    return Status("redis", True, server, texts, ahead, address)


def _name_of(info: dict[str, Any]) -> str:
    name = str(info.get("server_name") or "redis")
    version = info.get("valkey_version") or info.get("redis_version") or "(version unknown)"
    return f"{name} {version}"


def _warnings(info: dict[str, Any]) -> list[str]:
    warnings = []
    policy = info.get("maxmemory_policy")
    if policy is not None and policy != SAFE_EVICTION:
        warnings.append(
            f"maxmemory-policy is {policy}: when its memory is full, the server may delete "
            f"topics; set maxmemory-policy {SAFE_EVICTION}"
        )
    # Without the right to INFO nothing is known, and nothing is warned of.
    if info.get("aof_enabled", True):
        return warnings
    if info.get("rdb_saves", True):
        warnings.append(
            "no append-only file: a crash loses the events since the last save; set appendonly yes"
        )
    else:
        warnings.append(
            "the server has not saved since its start: a crash loses all events; set appendonly yes"
        )
    return warnings
