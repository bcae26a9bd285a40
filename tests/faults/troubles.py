"""The ways in which a broker is away, and how it comes back from each."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import redis

from semantik_realtime.testing.servers import RedisServer, Server, free_port


class Trouble:
    """One way, for a running server."""

    forgets = False
    """Whether the broker comes back empty."""
    answers_reads = False
    """Whether only writes are refused."""

    def __init__(self, server: Server) -> None:
        self.server = server

    @property
    def url(self) -> str:
        """What the application knows the broker by."""
        return self.server.url

    def prepare(self) -> None:
        """What is to be done before anybody connects."""

    async def begin(self) -> None:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError


class Killed(Trouble):
    async def begin(self) -> None:
        self.server.kill()

    async def end(self) -> None:
        await asyncio.to_thread(self.server.start)


class Emptied(Killed):
    forgets = True

    async def begin(self) -> None:
        self.server.kill()
        self.server.wipe()


class Hanging(Trouble):
    async def begin(self) -> None:
        self.server.pause()

    async def end(self) -> None:
        self.server.resume()


class _Administered(Trouble):
    """By a connection that is there before any trouble, and never cut."""

    def prepare(self) -> None:
        self.admin = redis.Redis.from_url(self.server.url)
        self.admin.ping()

    def say(self, *command: Any) -> None:
        self.admin.execute_command(*command)


class Full(_Administered):
    answers_reads = True

    async def begin(self) -> None:
        self.say("CONFIG", "SET", "maxmemory", "1mb")

    async def end(self) -> None:
        self.say("CONFIG", "SET", "maxmemory", "0")


class Replica(_Administered):
    answers_reads = True

    async def begin(self) -> None:
        self.say("REPLICAOF", "127.0.0.1", free_port())

    async def end(self) -> None:
        self.say("REPLICAOF", "NO", "ONE")


class Locked(_Administered):
    """It wants a password now."""

    async def begin(self) -> None:
        self.say("CONFIG", "SET", "requirepass", "changed")
        for kind in ("normal", "pubsub"):
            self.say("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def end(self) -> None:
        self.say("CONFIG", "SET", "requirepass", "")


class Expelled(_Administered):
    """Our user's password is another one now."""

    @property
    def url(self) -> str:
        return self.server.url.replace("://", "://web:secret@")

    def prepare(self) -> None:
        super().prepare()
        self.say("ACL", "SETUSER", "web", "on", ">secret", "~*", "&*", "+@all")

    async def begin(self) -> None:
        self.say("ACL", "SETUSER", "web", "resetpass", ">changed")
        self.say("CLIENT", "KILL", "USER", "web")

    async def end(self) -> None:
        self.say("ACL", "SETUSER", "web", "resetpass", ">secret")


class ExpelledByFile(Trouble):
    """The same for a server with its users in a file, which it reads again on SIGHUP."""

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


class Loading(Trouble):
    """It was restarted, and is reading its data for as long as the trouble lasts."""

    def prepare(self) -> None:
        assert isinstance(self.server, RedisServer)
        # A minute for what is in the base file; only there it takes breaks to answer.
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
