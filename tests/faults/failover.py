"""A primary and its replica behind one address, which moves as an operator's tooling moves it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from waiting import until

from semantik_realtime.testing.servers import (
    RedisServer,
    ServerMissing,
    free_port,
    redis_program,
    running,
    valkey_program,
)
from semantik_realtime.testing.tcp_proxy import TcpProxy

PROGRAMS = {"valkey": valkey_program, "redis": redis_program}
FAST = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


class Pair:
    """Two servers, of which the second follows the first, and the address in front of them."""

    def __init__(self, first: RedisServer, second: RedisServer, proxy: TcpProxy) -> None:
        self.first = first
        self.second = second
        self.proxy = proxy
        self.admins = [redis.Redis.from_url(server.url) for server in (first, second)]

    @property
    def url(self) -> str:
        """The URL of the address."""
        return f"redis://127.0.0.1:{self.proxy.port}/0"

    async def follow(self) -> None:
        """Make the second server a replica of the first."""
        self.admins[1].replicaof("127.0.0.1", self.first.port)
        await until(lambda: self._is_linked(1), 20, "the replica is linked")

    def promote(self) -> None:
        """Make the second server a primary, when it has everything."""
        assert self.admins[0].wait(1, 20_000) == 1
        self.admins[1].replicaof("NO", "ONE")

    def demote(self) -> None:
        """Make the first server a replica of the second. Its connections stay open."""
        self.admins[0].replicaof("127.0.0.1", self.second.port)

    def isolate(self) -> None:
        """Make the first server a replica of nobody: it answers reads, and gets no events."""
        self.admins[0].replicaof("127.0.0.1", free_port())

    def move(self) -> None:
        """Let new connections lead to the second server."""
        self.proxy.target = self.second.port

    def _is_linked(self, place: int) -> bool:
        return self.admins[place].info("replication").get("master_link_status") == "up"


@contextlib.contextmanager
def two_servers(program: str, *options: str) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Run two servers; skip the test if the program is missing."""
    try:
        path = PROGRAMS[program]()
    except ServerMissing as error:
        pytest.skip(str(error))
    options = (*FAST, *options)
    with (
        running(RedisServer(path, options=options)) as first,
        running(RedisServer(path, options=options)) as second,
    ):
        yield first, second


@contextlib.asynccontextmanager
async def serve_pair(program: str, *options: str) -> AsyncIterator[Pair]:
    """Run a pair whose address leads to the first server."""
    with two_servers(program, *options) as (first, second):
        async with TcpProxy(first.port) as proxy:
            pair = Pair(first, second, proxy)
            await pair.follow()
            yield pair
            for admin in pair.admins:
                admin.close()
