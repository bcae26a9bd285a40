"""A JetStream cluster of three servers, for tests of replicas."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from semantik_realtime.testing.servers import NatsServer, free_port

NODES = 3
ELECTION_SECONDS = 30.0
"""How long the servers may take until they have elected a leader."""
REPLICAS = {"SEMANTIK_REALTIME_NATS_REPLICAS": str(NODES)}
"""The environment in which the backend puts its stream on all servers."""


class NatsCluster:
    """Three servers that know each other. Not started before `start`.

    Args:
        program: the path of nats-server.
        config: more lines for each configuration file.
    """

    def __init__(self, program: str, *, config: str = "") -> None:
        ports = [free_port() for _ in range(NODES)]
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        self.nodes = {
            f"n{place}": NatsServer(
                program,
                config=f"server_name: n{place}\n"
                f'cluster {{ name: three, listen: "127.0.0.1:{port}", routes: [{routes}] }}\n'
                f"{config}",
            )
            for place, port in enumerate(ports, start=1)
        }
        """The servers by name."""

    @property
    def url(self) -> str:
        """The URLs of all servers, separated by commas."""
        return ",".join(node.url for node in self.nodes.values())

    def start(self) -> None:
        """Start the servers, and wait until JetStream accepts a stream on all of them."""
        for node in self.nodes.values():
            node.start()
        asyncio.run(self._wait_until_ready())

    def remove(self) -> None:
        """Kill the servers and delete their directories."""
        for node in self.nodes.values():
            node.remove()

    def leader_of(self, stream: str) -> NatsServer | None:
        """Return the server that leads a stream; None while there is none."""
        for node in self.nodes.values():
            reply = asyncio.run(request(node.url, f"$JS.API.STREAM.INFO.{stream}", {}))
            if reply is not None and (cluster := reply.get("cluster")):
                return self.nodes.get(cluster.get("leader", ""))
        return None

    def is_whole(self, stream: str) -> bool:
        """Return True if all replicas of a stream have what its leader has."""
        for node in self.nodes.values():
            reply = asyncio.run(request(node.url, f"$JS.API.STREAM.INFO.{stream}", {}))
            if reply is not None and (cluster := reply.get("cluster")):
                replicas = cluster.get("replicas", ())
                return len(replicas) == NODES - 1 and all(one.get("current") for one in replicas)
        return False

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + ELECTION_SECONDS
        error = "no answer"
        while time.monotonic() < deadline:
            url = next(iter(self.nodes.values())).url
            config = {"name": "ready", "subjects": ["ready"], "num_replicas": NODES}
            reply = await request(url, "$JS.API.STREAM.CREATE.ready", config)
            if reply is not None and "error" not in reply:
                await request(url, "$JS.API.STREAM.DELETE.ready", {})
                return
            error = str(reply)
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the cluster did not elect a leader: {error}")


async def request(url: str, subject: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Send one request to JetStream's API at ``url``; return its reply, None without one in 2 s.

    By the protocol's text, so that a test of a backend does not depend on its client library.
    """
    host, port = url.removeprefix("nats://").split(":")
    payload = json.dumps(body).encode()
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                await reader.readline()
                connect = json.dumps({"verbose": False, "headers": True, "no_responders": True})
                writer.write(
                    b"CONNECT %s\r\nSUB _INBOX.test 1\r\nPUB %s _INBOX.test %d\r\n%s\r\n"
                    % (connect.encode(), subject.encode(), len(payload), payload)
                )
                while line := await reader.readline():
                    if line == b"PING\r\n":
                        writer.write(b"PONG\r\n")
                    elif line.startswith(b"MSG "):
                        size = int(line.split()[-1])
                        found: dict[str, Any] = json.loads(await reader.readexactly(size + 2))
                        return found
                    elif line.startswith((b"HMSG ", b"-ERR")):
                        return None
            finally:
                writer.close()
    return None


@contextlib.contextmanager
def running_cluster(program: str) -> Iterator[NatsCluster]:
    """Run a cluster, and remove it afterwards."""
    cluster = NatsCluster(program)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()
