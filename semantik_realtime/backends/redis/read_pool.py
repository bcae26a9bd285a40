"""The connections for reading: each one shows, before it is used, what the writer has written."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from semantik_realtime.backends.redis.canary import Canary, Mark
from semantik_realtime.backends.redis.refusals import Kind, kind_of
from semantik_realtime.backends.redis.script import CONNECTION_SECONDS
from semantik_realtime.backoff import spread

logger = logging.getLogger(__name__)

LAG_SECONDS = 1.0
"""How far the server of the readers may be behind that of the writer."""
LOOK_SECONDS = 0.05
"""How often a reader looks whether it has caught up."""


class StaleServer(RedisConnectionError):
    """The server does not have what this process has written, and so may answer with old data."""


class _Made(msgspec.Struct, gc=False):
    """A connection since it was connected last."""

    usable_until: float
    """On the monotonic clock."""
    generation: int
    """Of the pool, when it was connected."""
    seen: int = 0
    """The newest number of the canary that was read over it."""


class ReadPool(redis.asyncio.BlockingConnectionPool):
    """A pool whose connections lead to the server of the writer, or to a replica that follows it.

    A connection that does not is connected again, which resolves the address again. So is one
    that is older than `CONNECTION_SECONDS`, because the address may have moved, and one that was
    made before `renew`.

    Args:
        options: as `redis.asyncio.BlockingConnectionPool` has them.
    """

    def __init__(self, **options: Any) -> None:
        self.canary_of: Callable[[], Canary | None] = lambda: None
        """Returns what the writer has written; set by the owner. None: nothing is compared."""
        self._generation = 0
        self._made: weakref.WeakKeyDictionary[Any, _Made] = weakref.WeakKeyDictionary()
        # Whether the last check failed; that is logged once.
        self._is_stale = False
        super().__init__(**options)
        self.connection_kwargs["redis_connect_func"] = self._connected

    def renew(self) -> None:
        """Connect every connection again before it is used: the server was not the right one."""
        self._generation += 1

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """Return a connection that was checked.

        Raises:
            StaleServer: where the address leads, the writes of this process are not found.
        """
        pool: Any = super()
        connection = await pool.get_connection(*args, **options)
        try:
            await self._check(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def _connected(self, connection: Any) -> None:
        await connection.on_connect()
        until = time.monotonic() + spread(CONNECTION_SECONDS)
        self._made[connection] = _Made(until, self._generation)

    async def _check(self, connection: Any) -> None:
        made = self._made[connection]
        if made.generation != self._generation or time.monotonic() >= made.usable_until:
            await self._reconnect(connection)
        await self._compare(connection)
        if self._is_stale:
            self._is_stale = False
            logger.info("reader: on the server of the writes again")

    async def _compare(self, connection: Any) -> None:
        """Lead a connection to the server of the writes.

        Raises:
            StaleServer: the address does not lead there.
        """
        canary = self.canary_of()
        if canary is None or await self._shows(connection, canary.mark, 0.0):
            return
        # The server may have lost the number with all its data.
        if not await canary.write() or await self._shows(connection, canary.mark, LAG_SECONDS):
            return
        await self._reconnect(connection)
        if not await self._shows(connection, canary.mark, LAG_SECONDS):
            raise await self._stale(connection)
        # So the other connections may be at the old server too.
        self.renew()
        self._made[connection].generation = self._generation

    async def _shows(self, connection: Any, mark: Mark | None, seconds: float) -> bool:
        """Return True if the server has the number of ``mark``, or a later one, in time."""
        if mark is None or self._made[connection].seen >= mark.number:
            return True
        key, number = mark
        deadline = time.monotonic() + seconds
        while True:
            try:
                await connection.send_command("HMGET", key, "number")
                [value] = await connection.read_response()
                seen = int(value or 0)
            except ResponseError as error:
                if kind_of(error) is Kind.WRONG_SERVER:
                    return False
                # Without the right to read the number, and where another node of a cluster has
                # got its slot, there is nothing to compare.
                seen = number
            if seen >= number:
                self._made[connection].seen = seen
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)

    async def _reconnect(self, connection: Any) -> None:
        await connection.disconnect()
        await connection.connect()

    async def _stale(self, connection: Any) -> StaleServer:
        """Return the error for a connection, with what its server says of itself."""
        facts = "role unknown"
        try:
            await connection.send_command("INFO", "replication")
            reply = await connection.read_response()
            info = dict(line.split(":", 1) for line in reply.decode().split("\r\n") if ":" in line)
            names = ("role", "master_host", "master_port", "master_link_status")
            facts = " ".join(f"{name}={info[name]}" for name in names if name in info)
        except (RedisError, OSError, ValueError):
            # An ACL may forbid INFO.
            pass
        if not self._is_stale:
            self._is_stale = True
            logger.warning(
                "reader: the server that the address leads to for reading lacks what this process "
                "has written %s",
                facts,
            )
        return StaleServer(
            "the server that the address leads to for reading does not have what this process has "
            f"written ({facts}): it is not the server of the writes, and no replica that follows it"
        )
