"""Faults of a broker, each with its beginning and its end."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import redis

from semantik_realtime.testing.servers import RedisServer, Server, free_port


class Fault:
    """One kind of fault of a running server."""

    forgets = False
    """Whether the broker comes back empty."""
    answers_reads = False
    """Whether only writes are refused."""

    def __init__(self, server: Server) -> None:
        self.server = server

    @property
    def url(self) -> str:
        """The URL that the application connects to."""
        return self.server.url

    def prepare(self) -> None:
        """Set the server up, before the application connects."""

    async def begin(self) -> None:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError


class Killed(Fault):
    async def begin(self) -> None:
        self.server.kill()

    async def end(self) -> None:
        await asyncio.to_thread(self.server.start)


class Emptied(Killed):
    forgets = True

    async def begin(self) -> None:
        self.server.kill()
        self.server.wipe()


class Hanging(Fault):
    async def begin(self) -> None:
        self.server.pause()

    async def end(self) -> None:
        self.server.resume()


class _AdminFault(Fault):
    """A fault made by commands, on a connection that outlives the fault."""

    def prepare(self) -> None:
        self.admin = redis.Redis.from_url(self.server.url)
        self.admin.ping()

    def execute(self, *command: Any) -> None:
        self.admin.execute_command(*command)


class Full(_AdminFault):
    answers_reads = True

    async def begin(self) -> None:
        self.execute("CONFIG", "SET", "maxmemory", "1mb")

    async def end(self) -> None:
        self.execute("CONFIG", "SET", "maxmemory", "0")


class Replica(_AdminFault):
    answers_reads = True

    async def begin(self) -> None:
        self.execute("REPLICAOF", "127.0.0.1", free_port())

    async def end(self) -> None:
        self.execute("REPLICAOF", "NO", "ONE")


class Locked(_AdminFault):
    """The server demands a password that the application does not have."""

    async def begin(self) -> None:
        self.execute("CONFIG", "SET", "requirepass", "changed")
        for kind in ("normal", "pubsub"):
            self.execute("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def end(self) -> None:
        self.execute("CONFIG", "SET", "requirepass", "")


class Expelled(_AdminFault):
    """The password of the application's user has changed."""

    @property
    def url(self) -> str:
        return self.server.url.replace("://", "://web:secret@")

    def prepare(self) -> None:
        super().prepare()
        self.execute("ACL", "SETUSER", "web", "on", ">secret", "~*", "&*", "+@all")

    async def begin(self) -> None:
        self.execute("ACL", "SETUSER", "web", "resetpass", ">changed")
        self.execute("CLIENT", "KILL", "USER", "web")

    async def end(self) -> None:
        self.execute("ACL", "SETUSER", "web", "resetpass", ">secret")


class ExpelledByFile(Fault):
    """The same for a server that reads its users from a file, again on SIGHUP."""

    @property
    def url(self) -> str:
        return self.server.url.replace("://", "://web:secret@")

    def prepare(self) -> None:
        config = self.server.directory / "conf"
        users = "authorization { users: [{user: web, password: secret}] }"
        config.write_text(f"{config.read_text()}\n{users}")
        self.server.stop()
        self.server.start()

    async def begin(self) -> None:
        self._change("secret", "changed")

    async def end(self) -> None:
        self._change("changed", "secret")

    def _change(self, before: str, after: str) -> None:
        config = self.server.directory / "conf"
        config.write_text(config.read_text().replace(f"password: {before}", f"password: {after}"))
        assert self.server.process is not None
        self.server.process.send_signal(signal.SIGHUP)


class Loading(Fault):
    """The server was restarted, and loads its data until the fault ends."""

    def prepare(self) -> None:
        assert isinstance(self.server, RedisServer)
        # Loading the base file takes a minute. The server answers only between its keys.
        slow = ("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
        self.server._more += slow
        with redis.Redis.from_url(self.server.url) as admin:
            admin.mset({f"ballast:{number}": number for number in range(12_000)})
            admin.execute_command("BGREWRITEAOF")
            while admin.info("persistence")["aof_rewrite_in_progress"]:
                pass

    async def begin(self) -> None:
        self.server.kill()
        self._starting = asyncio.create_task(asyncio.to_thread(self.server.start, 60))

    async def end(self) -> None:
        assert not self._starting.done()
        with redis.Redis.from_url(self.server.url) as admin:
            admin.config_set("key-load-delay", 0)
        await self._starting
