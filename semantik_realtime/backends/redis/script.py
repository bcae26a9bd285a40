"""The Lua scripts, and a connection that runs them in batches."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from semantik_realtime.errors import (
    AppendUncertain,
    BackendError,
    BackendRefused,
    BackendUnavailable,
    ConfigError,
)

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
    """A Lua script, of one or more files, and the name the server knows it by."""

    def __init__(self, *names: str) -> None:
        self.source = b"".join((files(__package__) / f"{name}.lua").read_bytes() for name in names)
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


APPEND = Script("fence", "append")
READ = Script("read")
CLAIM = Script("fence", "claim")
DELETE = Script("delete")
LEASE = Script("lease")
WRITES = (APPEND, CLAIM, DELETE, LEASE)


def explain(error: Exception) -> BackendError:
    """Our word for what redis-py or the server said."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return BackendRefused(f"the server refuses our rights: {error}")
    if isinstance(error, ResponseError):
        text = str(error)
        # redis-py has classes for some of these and strips their prefix.
        name = type(error).__name__.removesuffix("Error").upper()
        if text.startswith(_TEMPORARY) or name in _TEMPORARY or name == "OUTOFMEMORY":
            return BackendUnavailable(f"the server cannot write now: {text or name}")
        if text.startswith(("NOAUTH", "NOPERM", "WRONGPASS")):
            return BackendRefused(f"the server refuses our rights: {text}")
        return BackendRefused(f"the server says: {text}")
    return BackendUnavailable(f"{type(error).__name__}: {error}")


def check_url(url: str) -> None:
    """Have redis-py refuse now what it would refuse at the first connection.

    Raises:
        ConfigError: it makes no connection of this URL, or none of one of its two kinds.
    """
    try:
        for kind in (redis.ConnectionPool, redis.asyncio.ConnectionPool):
            pool: Any = kind.from_url(url)
            pool.connection_class(**pool.connection_kwargs)
    except (RedisError, ValueError, TypeError, AttributeError) as error:
        reason = str(error)
        if isinstance(error, TypeError):
            # Every option is passed on as an argument, and this one is none.
            reason = f"redis-py knows no option {reason.rpartition(' ')[2]} for it"
        raise ConfigError(f"wrong URL of the redis backend: {reason}") from error


class Writer:
    """Runs scripts from any thread, each call on a connection of its own while it lasts.

    Built on redis-py's connections rather than its client: the client resends
    by itself, and which error came before the sending decides whether a write
    may have happened.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def run(self, script: Script, keys: Sequence[str], *args: bytes | str | int | float) -> Any:
        """The answer of one script."""
        return self.run_all(script, [(keys, args)])[0]

    def command(self, *command: str | int) -> Any:
        """The answer of a plain command, one that is harmless to repeat."""
        [answer] = self._exchange([command])
        if isinstance(answer, Exception):
            raise explain(answer)
        return answer

    def run_all(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """The answers of one script to several calls, sent together.

        Raises:
            BackendUnavailable: nothing was run.
            AppendUncertain: some may have been run.
            BackendRefused: the server said no to all of them.
        """
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        answers = self._exchange(commands)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # SCRIPT FLUSH, or another server behind the name. A new connection loads the
            # scripts; a call that did run is repeated, which fences allow.
            self.close()
            answers = self._exchange(commands)
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        if not failures:
            return answers
        reason = explain(failures[0])
        if len(failures) < len(answers):
            raise AppendUncertain(f"{len(failures)} of {len(answers)} failed: {reason}")
        raise reason

    def close(self) -> None:
        """Drop idle connections. After a fork too: redis-py leaves a parent's socket alone."""
        self._lock = threading.Lock()
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        with self._connection() as connection:
            return _send(connection, commands)

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None and self._is_stale(connection):
            connection.disconnect()
            connection = None
        if connection is None:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            try:
                connection.connect()
                loads = [("SCRIPT", "LOAD", script.source) for script in WRITES]
                for answer in _send(connection, loads):
                    if isinstance(answer, Exception):
                        raise answer
            except (RedisError, OSError) as error:
                connection.disconnect()
                raise explain(error) from error
        try:
            yield connection
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise AppendUncertain(f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.disconnect()
            raise
        with self._lock:
            self._idle.append(connection)

    @staticmethod
    def _is_stale(connection: Any) -> bool:
        # Nothing is ever due on an idle connection: what can be read is its end.
        try:
            return bool(connection.can_read(0))
        except (RedisError, OSError):
            return True


def _pack(commands: Sequence[tuple[Any, ...]]) -> bytes:
    """Commands as the protocol has them.

    In one piece: redis-py would send pieces of 6 kB, and after each of them a
    busy thread of the process may hold the interpreter for 5 ms.
    """
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            value = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)


def _send(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Answers in order; an error of the server is an answer."""
    answers: list[Any] = []
    connection.send_packed_command([_pack(commands)])
    for _ in commands:
        try:
            answers.append(connection.read_response())
        except ResponseError as error:
            answers.append(error)
    return answers
