"""The Lua scripts, and whether a URL can be used."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError

from semantik_realtime.errors import ConfigError
from semantik_realtime.urls import find_fault, mask_text

CONNECTION_SECONDS = 60.0
"""Age, varied by 15 %, after which a connection is closed instead of used again. The next one
resolves the address of the server again, which may have moved while the old server answers on."""


class Script:
    """A Lua script, of one or more files, and the hash by which a server calls it."""

    def __init__(self, *names: str) -> None:
        self.source = b"".join((files(__package__) / f"{name}.lua").read_bytes() for name in names)
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


APPEND = Script("fence", "append")
READ = Script("entries", "read")
PAGE = Script("entries", "page")
CLAIM = Script("fence", "claim")
DELETE = Script("delete")
LEASE = Script("lease")
HOLD = Script("hold")
OVERDUE = Script("overdue")
GIVE = Script("give")
CANARY = Script("canary")
WRITES = (APPEND, CLAIM, DELETE, LEASE, HOLD, OVERDUE, GIVE, CANARY)


def milliseconds(seconds: float) -> int:
    """Return a duration as the scripts need it: whole, and not 0."""
    return max(1, round(seconds * 1000))


def check_url(url: str) -> None:
    """Check a URL as redis-py does at the first connection. Opens none.

    Raises:
        ConfigError: redis-py cannot make a connection, a blocking or an asyncio one, of it, or
            might take a part of its password for something else.
    """
    if fault := find_fault(url):
        raise ConfigError(f"wrong URL of the redis backend: {fault}")
    try:
        for kind in (redis.ConnectionPool, redis.asyncio.ConnectionPool):
            pool: Any = kind.from_url(url)
            pool.connection_class(**pool.connection_kwargs)
    except (RedisError, ValueError, TypeError, AttributeError) as error:
        reason = str(error)
        if isinstance(error, TypeError):
            # redis-py passes an unknown option on as an argument that nothing accepts.
            reason = f"redis-py knows no option {reason.rpartition(' ')[2]} for it"
        # Not chained: the frames of redis-py's error have the password.
        raise ConfigError(f"wrong URL of the redis backend: {mask_text(reason)}") from None
