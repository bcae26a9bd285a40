"""Several Redis or Valkey servers that work together: with sentinels, and as a cluster."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot
from redis.exceptions import RedisError

from semantik_realtime.testing.servers import RedisServer, free_port

MASTER = "realtime"
"""The name that the sentinels know the master by."""
DOWN_MS = 1000
"""After so long without a reply a node is taken for dead."""
FIT_SECONDS = 60.0
"""How long the servers may take to find each other."""


class SentinelServer(RedisServer):
    """One process that watches a master."""

    def __init__(self, program: str, master_port: int, quorum: int = 2) -> None:
        super().__init__(program)
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"sentinel monitor {MASTER} 127.0.0.1 {master_port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER} {DOWN_MS}",
            f"sentinel failover-timeout {MASTER} 6000",
        ]
        (self.directory / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _options(self) -> Sequence[str]:
        return [str(self.directory / "sentinel.conf"), "--sentinel"]


class Trio:
    """One master, two replicas and three sentinels. A node is known by its port.

    Args:
        program: the path of redis-server or valkey-server.
        sync: when the nodes sync their append-only file to disk.
    """

    def __init__(self, program: str, sync: str = "no") -> None:
        ports = [free_port() for _ in range(3)]
        first, *others = ports
        more = ("--appendfsync", sync, "--repl-diskless-sync-delay", "0")
        replica = ("--replicaof", f"127.0.0.1 {first}")
        self.nodes = {first: RedisServer(program, port=first, options=more)}
        self.nodes |= {
            port: RedisServer(program, port=port, options=(*more, *replica)) for port in others
        }
        self.sentinels = [SentinelServer(program, first) for _ in range(3)]

    @property
    def url(self) -> str:
        """The URL for our backend."""
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{MASTER}/0"

    @property
    def master(self) -> RedisServer:
        """The node that the first sentinel that answers names."""
        for sentinel in self.sentinels:
            try:
                with _client(sentinel.port) as client:
                    _, port = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)
                    return self.nodes[int(port)]
            except RedisError:
                continue
        raise RuntimeError("no sentinel answers")

    def fail_over(self) -> None:
        """Let the sentinels promote a replica while the master lives; return at once."""
        with _client(self.sentinels[0].port) as client:
            client.execute_command("SENTINEL FAILOVER", MASTER)

    def wait(self) -> None:
        """Wait until every sentinel knows the two others and both replicas.

        Raises:
            TimeoutError: they do not.
        """
        _wait(lambda: all(self._is_known(sentinel.port) for sentinel in self.sentinels))

    def start(self) -> None:
        for server in (*self.nodes.values(), *self.sentinels):
            server.start()

    def remove(self) -> None:
        """Kill all processes and delete their directories."""
        for server in (*self.sentinels, *self.nodes.values()):
            server.remove()

    @staticmethod
    def _is_known(port: int) -> bool:
        with _client(port) as client:
            flat = client.execute_command("SENTINEL MASTER", MASTER)
            if not isinstance(flat, dict):
                flat = dict(zip(flat[::2], flat[1::2], strict=True))
        facts = {_text(name): _text(value) for name, value in flat.items()}
        flags = facts["flags"].strip("{}'")
        return (facts["num-other-sentinels"], facts["num-slaves"], flags) == ("2", "2", "master")


class Cluster:
    """Three masters and three replicas. A node is known by its port.

    Args:
        program: the path of redis-server or valkey-server.
        options: further command-line options of each node.
    """

    def __init__(self, program: str, options: tuple[str, ...] = ()) -> None:
        self.ids = {free_port(): secrets.token_hex(20) for _ in range(6)}
        self.buses = {port: free_port() for port in self.ids}
        more = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_MS)),
            *("--appendfsync", "no", "--repl-diskless-sync-delay", "0", *options),
        )
        self.nodes = {
            port: RedisServer(program, port=port, options=(*more, "--cluster-port", str(bus)))
            for port, bus in self.buses.items()
        }

    @property
    def url(self) -> str:
        """The URL for our backend: of two nodes."""
        return f"redis+cluster://127.0.0.1:{self.ports[0]},127.0.0.1:{self.ports[1]}"

    @property
    def ports(self) -> list[int]:
        """The ports of the nodes; at the beginning the first three are the masters."""
        return list(self.nodes)

    def start(self) -> None:
        """Start all nodes, each with a file that tells it of all the others."""
        for server in self.nodes.values():
            (server.directory / "nodes.conf").write_text(self._nodes_file(server.port))
            server.start()

    def wait(self) -> None:
        """Wait until every node takes part, and every master has its replica.

        Raises:
            TimeoutError: they do not.
        """
        _wait(lambda: all(self._is_ready(port) for port in self.nodes))

    def remove(self) -> None:
        """Kill all processes and delete their directories."""
        for server in self.nodes.values():
            server.remove()

    def owner(self, name: str) -> RedisServer:
        """Return the node that has a key or channel, as the first one that answers says."""
        for port, server in self.nodes.items():
            if server.process is not None and (owner := self.owner_by(port, name)):
                return self.nodes[owner]
        raise RuntimeError("no node answers")

    def owner_by(self, port: int, name: str) -> int | None:
        """Return the port of the node that has a key or channel, as the one at ``port`` says."""
        slot = key_slot(name.encode())
        try:
            ranges = self.client(port, "CLUSTER SLOTS")
        except RedisError:
            return None
        return next(
            (int(node[1]) for first, last, node, *_ in ranges if first <= slot <= last), None
        )

    def client(self, port: int, *command: Any) -> Any:
        """Run a command on a node."""
        with _client(port) as client:
            return client.execute_command(*command)

    def replica_of(self, port: int) -> int:
        """Return the port of a replica of the master at ``port``."""
        place = {identity: at for at, identity in self.ids.items()}
        lines = self.client(port, "CLUSTER REPLICAS", self.ids[port])
        lines = [_text(line) for line in (lines if isinstance(lines, list) else [*lines])]
        return place[lines[0].split()[0]] if " " in lines[0] else int(lines[0].rpartition(":")[2])

    @contextmanager
    def moving(self, slot: int, source: int, target: int) -> Iterator[None]:
        """Move a slot with its keys; in the block it is being moved, and has all its keys yet."""
        self.client(target, "CLUSTER SETSLOT", slot, "IMPORTING", self.ids[source])
        self.client(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.ids[target])
        yield
        while keys := self.client(source, "CLUSTER GETKEYSINSLOT", slot, 100):
            for key in keys:
                self.client(source, "MIGRATE", "127.0.0.1", target, key, 0, 5000)
        for port in (target, source):
            self.client(port, "CLUSTER SETSLOT", slot, "NODE", self.ids[target])

    def _nodes_file(self, own: int) -> str:
        lines = []
        ports = self.ports
        for place, port in enumerate(ports):
            flags = "myself," if port == own else ""
            address = f"{self.ids[port]} 127.0.0.1:{port}@{self.buses[port]}"
            if place < 3:
                first, last = SLOTS * place // 3, SLOTS * (place + 1) // 3 - 1
                lines.append(f"{address} {flags}master - 0 0 {place + 1} connected {first}-{last}")
            else:
                master = self.ids[ports[place - 3]]
                lines.append(f"{address} {flags}slave {master} 0 0 {place - 2} connected")
        return "\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0", ""])

    def _is_ready(self, port: int) -> bool:
        facts = self.client(port, "CLUSTER INFO")
        if not isinstance(facts, dict):
            facts = dict(line.split(":", 1) for line in _text(facts).split())
        if facts.get("cluster_state") != "ok":
            return False
        with _client(port) as client:
            info = client.info("replication")
        if info["role"] == "master":
            return int(info["connected_slaves"]) == 1
        return bool(info["master_link_status"] == "up")


@contextmanager
def working(servers: Trio | Cluster) -> Iterator[Any]:
    """Start ``servers``, wait until they know each other, and remove them afterwards."""
    with ExitStack() as stack:
        stack.callback(servers.remove)
        servers.start()
        servers.wait()
        yield servers


def _client(port: int) -> redis.Redis:
    return redis.Redis(port=port, protocol=2, socket_timeout=5, socket_connect_timeout=5)


def _wait(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + FIT_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the servers do not know each other after {FIT_SECONDS:g} s")
        time.sleep(0.05)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
