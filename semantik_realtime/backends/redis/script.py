"""The Lua scripts, and the connections that run those that write."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from semantik_realtime.backends.redis.refusals import Kind, ends_connection, explain, kind_of
from semantik_realtime.backoff import spread
from semantik_realtime.errors import AppendUncertain, ConfigError
from semantik_realtime.native_threads import at_thread_end, make_lock, socket_owner
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


class Writer:
    """Runs scripts, from any thread. Each call has a connection of its own while it runs.

    It uses redis-py's connections, not its client, because the client sends a
    command again by itself. Here an error before the sending means that nothing
    was written, and a later one that something may have been.

    Args:
        url: of the server.
        timeout_seconds: deadline of connecting and of each reply.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        # Connections that no call uses, by their `socket_owner`, each with the monotonic time until
        # which it may be used; taken and returned under the lock.
        self._idle: dict[int, list[tuple[Any, float]]] = {}
        # The connections of the calls that run, each with the id of its process.
        self._busy: dict[Any, int] = {}
        self.connections = 0
        """How many connections were made. A new one may lead to another server."""
        self._lock = make_lock()

    def run(self, script: Script, keys: Sequence[str], *args: bytes | str | int | float) -> Any:
        """Run a script once and return its reply.

        Raises:
            BackendError: see `run_all`.
        """
        return self.run_all(script, [(keys, args)])[0]

    def command(self, *command: str | int) -> Any:
        """Run a command that may be repeated safely, and return its reply.

        Raises:
            BackendError: see `run_all`.
        """
        [reply] = self._exchange([command])
        if isinstance(reply, Exception):
            raise explain(reply)
        return reply

    def run_all(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """Run a script several times in one round trip; return the replies in order.

        Raises:
            BackendUnavailable: the script did not run.
            AppendUncertain: the script may have run, once or several times.
            BackendRefused: the server refused all runs.
        """
        replies = self.run_each(script, calls)
        failures = [reply for reply in replies if isinstance(reply, Exception)]
        if not failures:
            return replies
        reason = explain(failures[0])
        if len(failures) < len(replies):
            raise AppendUncertain(f"{len(failures)} of {len(replies)} failed: {reason}")
        raise reason

    def run_each(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """Do the same, but return an error of the server in the place of the reply.

        Raises:
            BackendUnavailable: the script did not run.
            AppendUncertain: the script may have run, once or several times.
        """
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        replies = self._exchange(commands)
        kinds = {kind_of(reply) for reply in replies if isinstance(reply, Exception)}
        if kinds & {Kind.SCRIPT_UNKNOWN, Kind.WRONG_NODE}:
            # SCRIPT FLUSH, or another server behind the host name. A new connection loads the
            # scripts. Runs that succeeded are repeated too; every script allows that.
            self.close()
            replies = self._exchange(commands)
        return replies

    def close(self) -> None:
        """Close idle connections; in a forked child too, where the parent's sockets stay open."""
        self._lock = make_lock()
        idle, self._idle = self._idle, {}
        for connection, _ in idle.get(socket_owner(), ()):
            connection.disconnect()

    def abort(self) -> None:
        """Make the calls of all threads that run now fail, instead of waiting for a reply.

        Not the calls of the parent, in a forked child.
        """
        for connection, pid in list(self._busy.items()):
            found = getattr(connection, "_sock", None)
            if pid == os.getpid() and found is not None:
                with suppress(OSError):
                    found.shutdown(socket.SHUT_RDWR)

    def _close_own(self) -> None:
        """Close the idle connections of this thread."""
        with self._lock:
            idle = self._idle.pop(socket_owner(), [])
        for connection, _ in idle:
            connection.disconnect()

    def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the replies to ``commands``, an error of the server among them.

        If one says that this is not the server for it, all connections are closed: the next one
        resolves the address again.
        """
        connection, usable_until = self._take()
        self._busy[connection] = os.getpid()
        try:
            replies = _send(connection, commands)
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise AppendUncertain(f"{type(error).__name__}: {mask_text(str(error))}") from error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._busy.pop(connection, None)
        if any(isinstance(reply, Exception) and ends_connection(reply) for reply in replies):
            connection.disconnect()
            self._close_own()
        else:
            with self._lock:
                self._idle.setdefault(socket_owner(), []).append((connection, usable_until))
        return replies

    def _take(self) -> tuple[Any, float]:
        """Return a connection that no other call uses, and until when it may be used."""
        with self._lock:
            idle = self._idle.get(socket_owner())
            connection, usable_until = idle.pop() if idle else (None, 0.0)
        if connection is None:
            return self._connect()
        if self._is_stale(connection, usable_until):
            connection.disconnect()
            return self._connect()
        return connection, usable_until

    def _connect(self) -> tuple[Any, float]:
        """Make a connection on which the scripts are loaded, and return until when it is used."""
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        at_thread_end(self._close_own)
        self._busy[connection] = os.getpid()
        try:
            connection.connect()
            loads = [("SCRIPT", "LOAD", script.source) for script in WRITES]
            for reply in _send(connection, loads):
                if isinstance(reply, Exception):
                    raise reply
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise explain(error) from error
        finally:
            self._busy.pop(connection, None)
        self.connections += 1
        return connection, time.monotonic() + spread(CONNECTION_SECONDS)

    @staticmethod
    def _is_stale(connection: Any, usable_until: float) -> bool:
        if time.monotonic() >= usable_until:
            return True
        # No reply is due on an idle connection, so if it can be read the server has closed it.
        try:
            return bool(connection.can_read(0))
        except (RedisError, OSError):
            return True


def _pack(commands: Sequence[tuple[Any, ...]]) -> bytes:
    """Encode commands in the server's protocol, in one piece.

    redis-py would send pieces of 6 kB, and after each of them another thread of
    the process may hold the interpreter for 5 ms.
    """
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            value = argument if isinstance(argument, bytes) else str(argument).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)


def _send(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands together; return the replies in order, an error of the server among them."""
    replies: list[Any] = []
    connection.send_packed_command([_pack(commands)])
    for _ in commands:
        try:
            replies.append(connection.read_response())
        except (ResponseError, BusyLoadingError) as error:
            replies.append(error)
    return replies
