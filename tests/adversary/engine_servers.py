"""The engines under attack: their servers, and what can be done to them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator

import redis
from redis.exceptions import RedisError

from semantik_realtime.testing.nats_cluster import NatsCluster
from semantik_realtime.testing.redis_nodes import Cluster, Trio
from semantik_realtime.testing.servers import (
    ROWS,
    RedisServer,
    Server,
    nats_program,
    redis_program,
    valkey_program,
)

NAMES = ("valkey", "redis", "sentinel", "cluster", "nats", "nats-r3")
FIT_SECONDS = 60.0


class Engine:
    """Servers of one engine. A fault is done to `victim`, and undone by `mend`."""

    backend = "redis"
    is_single = False
    """Whether all links lead through proxies to one address."""

    @property
    def url(self) -> str:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def remove(self) -> None:
        raise NotImplementedError

    def victim(self, rng: random.Random) -> Server:
        """Return the server to attack."""
        raise NotImplementedError

    def mend(self) -> None:
        """Start what is dead, and wait until the servers know each other."""
        raise NotImplementedError

    def fail_over(self, rng: random.Random) -> None:
        """Promote another server while the first lives."""
        raise NotImplementedError


class Single(Engine):
    """One server, and for Redis another that can replace it."""

    is_single = True

    def __init__(self, name: str) -> None:
        self.backend = ROWS[name].backend
        make = ROWS[name].make_server
        assert make is not None
        self.servers = [make()]
        if self.backend == "redis":
            program = self.servers[0].program
            options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
            self.servers = [RedisServer(program, options=options) for _ in range(2)]
        self.first = self.servers[0]

    @property
    def url(self) -> str:
        return self.first.url

    @property
    def other(self) -> Server:
        return next(server for server in self.servers if server is not self.first)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        self.mend()

    def remove(self) -> None:
        for server in self.servers:
            server.remove()

    def victim(self, rng: random.Random) -> Server:
        return self.first

    def mend(self) -> None:
        for server in self.servers:
            if server.process is None:
                server.start()
        if self.backend == "redis":
            _command(self.first, "REPLICAOF", "NO", "ONE")
            _command(self.other, "REPLICAOF", "127.0.0.1", self.first.port)
            _wait(lambda: _replication(self.other).get("master_link_status") == "up")

    def detach(self) -> None:
        """Let the replica fall behind: from now on it gets nothing."""
        _command(self.other, "REPLICAOF", "NO", "ONE")

    def fail_over(self, rng: random.Random) -> None:
        """Promote the replica as it is, and demote the first; connections stay open."""
        _command(self.other, "REPLICAOF", "NO", "ONE")
        _command(self.first, "REPLICAOF", "127.0.0.1", self.other.port)
        self.first = self.other


class Sentinels(Engine):
    def __init__(self) -> None:
        self.trio = Trio(valkey_program())

    @property
    def url(self) -> str:
        return self.trio.url

    def start(self) -> None:
        self.trio.start()
        self.trio.wait()

    def remove(self) -> None:
        self.trio.remove()

    def victim(self, rng: random.Random) -> Server:
        return self.trio.master

    def mend(self) -> None:
        for node in self.trio.nodes.values():
            if node.process is None:
                node.start()
        _wait(self._is_whole)

    def fail_over(self, rng: random.Random) -> None:
        old = self.trio.master
        self.trio.fail_over()
        _wait(lambda: self.trio.master is not old)

    def _is_whole(self) -> bool:
        master = self.trio.master
        found = _replication(master)
        # The commands of a sentinel that still takes an old master for a replica come late.
        return found.get("role") == "master" and int(found.get("connected_slaves", 0)) == 2


class Slots(Engine):
    def __init__(self) -> None:
        self.cluster = Cluster(redis_program())
        self.topic = ""
        """A topic that is watched: the node that has it is attacked."""

    @property
    def url(self) -> str:
        return self.cluster.url

    def start(self) -> None:
        self.cluster.start()
        self.cluster.wait()

    def remove(self) -> None:
        self.cluster.remove()

    def victim(self, rng: random.Random) -> Server:
        return self.cluster.owner(f"{{{self.topic}}}")

    def mend(self) -> None:
        for node in self.cluster.nodes.values():
            if node.process is None:
                node.start()
        _wait(self._is_whole)

    def fail_over(self, rng: random.Random) -> None:
        old = self.victim(rng)
        replica = self.cluster.replica_of(old.port)
        self.cluster.client(replica, "CLUSTER FAILOVER")
        _wait(lambda: _replication(self.cluster.nodes[replica]).get("role") == "master")

    def _is_whole(self) -> bool:
        return all(map(self.cluster._is_ready, self.cluster.nodes))


class Nats(Engine):
    backend = "nats"

    def __init__(self) -> None:
        self.cluster = NatsCluster(nats_program())
        self.stream = ""

    @property
    def url(self) -> str:
        return self.cluster.url

    def start(self) -> None:
        self.cluster.start()

    def remove(self) -> None:
        self.cluster.remove()

    def victim(self, rng: random.Random) -> Server:
        if rng.random() < 0.6 and (leader := self.cluster.leader_of(self.stream)):
            return leader
        return rng.choice(list(self.cluster.nodes.values()))

    def mend(self) -> None:
        for node in self.cluster.nodes.values():
            if node.process is None:
                node.start()
        _wait(lambda: self.cluster.is_whole(self.stream))


def make_engine(name: str) -> Engine:
    """Return the engine with a name of `NAMES`, not started."""
    match name:
        case "sentinel":
            return Sentinels()
        case "cluster":
            return Slots()
        case "nats-r3":
            return Nats()
    return Single(name)


@contextlib.contextmanager
def running_engine(name: str) -> Iterator[Engine]:
    """Run an engine, and remove it afterwards."""
    engine = make_engine(name)
    try:
        engine.start()
        yield engine
    finally:
        engine.remove()


async def in_thread(call: object, *arguments: object) -> object:
    """Run what blocks, so that the proxies and watchers go on."""
    return await asyncio.to_thread(call, *arguments)  # type: ignore[arg-type]


def _command(server: Server, *command: object) -> None:
    with redis.Redis(port=server.port, socket_timeout=5) as admin:
        admin.execute_command(*command)


def _replication(server: Server) -> dict[str, object]:
    with redis.Redis(port=server.port, socket_timeout=5) as admin:
        return dict(admin.info("replication"))


def _wait(is_true: object) -> None:
    deadline = time.monotonic() + FIT_SECONDS
    while True:
        with contextlib.suppress(RedisError, RuntimeError, OSError):
            if is_true():  # type: ignore[operator]
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"the engine is not whole after {FIT_SECONDS:g} s")
        time.sleep(0.05)
