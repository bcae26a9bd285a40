"""The Lua scripts, what an error of the server means, and whether a URL can be used."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from semantik_realtime.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    ConfigError,
)
from semantik_realtime.urls import find_fault, mask_text

# The first words of errors with which a server refuses writes for a while.
_TEMPORARY = (
    "READONLY",
    "LOADING",
    "OOM",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "BUSY",
    "MISCONF",
    "NOREPLICAS",
    "UNBLOCKED",
)


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
WRITES = (APPEND, CLAIM, DELETE, LEASE, HOLD, OVERDUE, GIVE)


def milliseconds(seconds: float) -> int:
    """Return a duration as the scripts need it: whole, and not 0."""
    return max(1, round(seconds * 1000))


def explain(error: Exception) -> BackendError:
    """Return the error of this package for an error of redis-py or of the server."""
    text = mask_text(str(error))
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return BackendRefused(f"the server refuses our rights: {text}")
    if isinstance(error, ResponseError):
        # redis-py has classes for some of these and strips their prefix.
        name = type(error).__name__.removesuffix("Error").upper()
        if text.startswith(_TEMPORARY) or name in _TEMPORARY or name == "OUTOFMEMORY":
            return BackendUnavailable(f"the server cannot write now: {text or name}")
        if text.startswith(("NOAUTH", "NOPERM", "WRONGPASS")):
            return BackendRefused(f"the server refuses our rights: {text}")
        return BackendRefused(f"the server refuses: {text}")
    return BackendUnavailable(f"{type(error).__name__}: {text}")


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
