"""What is measured: a way to bring events from one process to the sockets of another."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from benchmarks.burst import Publisher
from benchmarks.wires import Wire

OURS = "semantik-realtime"
PEERS = {
    "socketio": "benchmarks.contenders.socket_io:SocketIo",
    "channels": "benchmarks.contenders.channels_redis:Channels",
    "channels-pubsub": "benchmarks.contenders.channels_redis:ChannelsPubSub",
    "broadcaster": "benchmarks.contenders.broadcaster:Broadcaster",
    "pubsub": "benchmarks.contenders.pubsub:PubSubASocket",
}
PEER_BROKER = "valkey"
MAX_CONNECTIONS = 100_000
"""Of a peer to the broker. redis-py 8 allows 100 by default, fewer than there are sockets."""


class Contender(Protocol):
    """One of them. Its methods are called in processes of their own: it can be pickled."""

    @property
    def name(self) -> str:
        """As people know it."""

    @property
    def broker(self) -> str:
        """The server between the processes, by its name in `benchmarks.broker.BACKENDS`."""

    @property
    def wire(self) -> Wire:
        """What its sockets speak."""

    def application(self, url: str | None) -> Any:
        """The ASGI application."""

    def publisher(self, url: str, job_id: str) -> Publisher:
        """Who publishes to the topic of this job, from outside of the application."""

    def publisher_inside(self, application: Any, job_id: str) -> Publisher:
        """The same where there is no server: within the application's process."""


def load_peer(name: str) -> Contender:
    """The peer with this name in `PEERS`.

    Raises:
        ImportError: it is not installed.
    """
    module, _, kind = PEERS[name].partition(":")
    peer: Contender = getattr(importlib.import_module(module), kind)()
    return peer
