"""Contenders: ways to deliver events from one process to the sockets of another."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.burst import Publisher
from benchmarks.wires import Wire

OURS = "semantik-realtime"
"""The name of every contender that is this project."""
PEERS = {
    "socketio": "benchmarks.contenders.socket_io:SocketIo",
    "channels": "benchmarks.contenders.channels_redis:Channels",
    "channels-pubsub": "benchmarks.contenders.channels_redis:ChannelsPubSub",
    "broadcaster": "benchmarks.contenders.broadcaster:Broadcaster",
    "pubsub": "benchmarks.contenders.pubsub:PubSubPerSocket",
}
"""Where the class of each peer is, by its name on the command line."""
PEER_BROKER = "valkey"
MAX_CONNECTIONS = 100_000
"""Of a peer to the broker; redis-py 8 allows 100 by default, fewer than there are sockets."""


class Contender(Protocol):
    """One contender. It can be pickled, because its methods are called in other processes."""

    @property
    def name(self) -> str:
        """The name in tables."""

    @property
    def broker(self) -> str:
        """The server between the processes, by its name in `benchmarks.broker.BACKENDS`."""

    @property
    def wire(self) -> Wire:
        """The protocol of its sockets."""

    def application(self, url: str | None) -> Any:
        """Return the ASGI application, connected to the broker at ``url``; None for memory."""

    def publisher(self, url: str, job_ids: Sequence[str]) -> Publisher:
        """Return a publisher for the topics of jobs, in another process than the application."""

    def local_publisher(self, application: Any, job_ids: Sequence[str]) -> Publisher:
        """Return the same in the application's process, for a backend without a server."""


def load_peer(name: str) -> Contender:
    """Return the peer with this name in `PEERS`.

    Raises:
        ImportError: it is not installed.
    """
    return _load(PEERS[name])


def load_bare_loop() -> Contender:
    """Return the yardstick of `benchmarks.jobs`, which is no peer: it is no library."""
    return _load("benchmarks.contenders.bare_loop:BareLoop")


def _load(path: str) -> Contender:
    module, _, kind = path.partition(":")
    contender: Contender = getattr(importlib.import_module(module), kind)()
    return contender
