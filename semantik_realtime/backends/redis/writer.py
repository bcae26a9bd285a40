"""The connections that run the scripts that write."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from semantik_realtime.backends.redis.nodes import Node, read_redirect
from semantik_realtime.backends.redis.refusals import (
    Kind,
    code_of,
    ends_connection,
    explain,
    explain_for_key,
    kind_of,
)
from semantik_realtime.backends.redis.script import CONNECTION_SECONDS, WRITES, Script
from semantik_realtime.backends.redis.send import pack, read_all, send_all
from semantik_realtime.backends.redis.topology import Topology
from semantik_realtime.backoff import spread
from semantik_realtime.errors import AppendUncertain, BackendRefused, BackendUnavailable
from semantik_realtime.native_threads import at_thread_end, make_event, make_lock, socket_owner
from semantik_realtime.urls import mask_text

FIRST_PAUSE_SECONDS = 0.01
LAST_PAUSE_SECONDS = 0.2
"""Between two tries while a slot is moved: each pause is twice as long as the one before."""

Command = tuple[Any, ...]


class _Target(NamedTuple):
    """Where a command is sent."""

    node: Node
    is_asking: bool = False
    """Whether the slot is being moved to the node: it accepts the command only after ``ASKING``."""


_Idle = tuple[Any, float]


class Writer:
    """Runs scripts, from any thread. Each call has connections of its own while it runs.

    It uses redis-py's connections, not its clients, because a client sends a
    command again by itself. Here an error before the sending means that nothing
    was written, and a later one that something may have been. A command that a
    node of a cluster did not run, but redirected, is sent again.

    Args:
        topology: says which node has a key.
        timeout_seconds: deadline of connecting, of each reply, and of being redirected.
        mark: the key with which a migration closes the server (`script.mark_key`).
    """

    def __init__(self, topology: Topology, timeout_seconds: float, mark: str) -> None:
        self._topology = topology
        self._mark = mark
        self._timeout = timeout_seconds
        # Connections that no call uses, by their `socket_owner` and node, each with the monotonic
        # time until which it may be used; taken and returned under the lock.
        self._idle: dict[tuple[int, Node], list[_Idle]] = {}
        # The connections of the calls that run, each with the id of its process.
        self._busy: dict[Any, int] = {}
        self._lock = make_lock()
        self.connections = 0
        """How many connections were made. A new one may lead to another server."""

    def run(self, script: Script, keys: Sequence[str], *args: bytes | str | int | float) -> Any:
        """Run a script once and return its reply.

        Raises:
            BackendError: see `run_all`.
        """
        return self.run_all(script, [(keys, args)])[0]

    def command(self, key: str, *command: str | int) -> Any:
        """Run a command on ``key`` that may be repeated safely, and return its reply.

        Raises:
            BackendError: see `run_all`.
        """
        return _checked(self._run([(key, command)]), key)[0]

    def run_all(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """Run a script several times, in one round trip to each node; return the replies in order.

        All keys of a call are in one slot.

        Raises:
            BackendUnavailable: the script did not run.
            AppendUncertain: the script may have run, once or several times.
            KeyRefused: the server refuses the first key, and answers for others.
            BackendRefused: the server refused all runs.
        """
        return _checked(self.run_each(script, calls), calls[0][0][0])

    def run_each(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]
    ) -> list[Any]:
        """Do the same, but return what the server refused as an exception in the reply's place.

        Raises:
            BackendUnavailable: the script did not run.
            AppendUncertain: the script may have run, once or several times.
            BackendRefused: the server refuses the connection.
        """
        # A script in a cluster cannot read a key of another slot.
        is_checked = script.is_refused_when_closed and not self._topology.find().is_cluster
        more = (self._mark,) if is_checked else ()
        return self._run(
            [
                (keys[0], ("EVALSHA", script.sha, len(keys) + len(more), *keys, *more, *args))
                for keys, args in calls
            ]
        )

    def close(self) -> None:
        """Close idle connections; in a forked child too, where the parent's sockets stay open."""
        self._lock = make_lock()
        idle, self._idle = self._idle, {}
        for (owner, _), connections in idle.items():
            if owner == socket_owner():
                for connection, _ in connections:
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

    def _close_own(self, node: Node | None = None) -> None:
        """Close the idle connections of this thread, to one node or to all."""
        owner = socket_owner()
        with self._lock:
            keys = [key for key in self._idle if key[0] == owner and node in (None, key[1])]
            idle = [connection for key in keys for connection in self._idle.pop(key)]
        for connection, _ in idle:
            connection.disconnect()

    def _run(self, calls: Sequence[tuple[str, Command]]) -> list[Any]:
        """Run commands on the nodes of their keys; return replies and errors in order."""
        layout = self._topology.find()
        replies: list[Any] = [None] * len(calls)
        targets: dict[int, _Target] = {}
        for place, (key, _) in enumerate(calls):
            node = layout.node_of(key)
            if node is None:
                self._topology.doubt(layout.nodes[0])
                raise BackendUnavailable("no node of the cluster serves the slot of a topic")
            targets[place] = _Target(node)
        deadline = time.monotonic() + self._timeout
        rounds = 0
        while targets:
            try:
                got = self._exchange([(target, calls[i][1]) for i, target in targets.items()])
            except (BackendUnavailable, BackendRefused) as error:
                if any(reply is not None and not _failed(reply) for reply in replies):
                    raise AppendUncertain(f"some of several runs failed: {error}") from error
                raise
            again = {}
            for (place, target), reply in zip(targets.items(), got, strict=True):
                replies[place] = reply
                following = self._following(target, reply, rounds) if _failed(reply) else None
                if following is not None:
                    again[place] = following
            targets = again
            rounds += 1
            if targets and rounds > 1:
                pause = min(FIRST_PAUSE_SECONDS * 2 ** (rounds - 2), LAST_PAUSE_SECONDS)
                if time.monotonic() + pause > deadline:
                    break
                make_event().wait(pause)
        return replies

    def _following(self, target: _Target, reply: Exception, rounds: int) -> _Target | None:
        """Return where to send a command that failed; None: its reply is final."""
        node = target.node
        if kind_of(reply) is Kind.SCRIPT_UNKNOWN and rounds == 0:
            # SCRIPT FLUSH, or another server behind the host name. A new connection loads the
            # scripts.
            self._close_own(node)
            return target
        if (redirect := read_redirect(reply, node)) is not None:
            self._topology.follow(redirect)
            return _Target(redirect.node, redirect.only_once)
        if code_of(reply) == "TRYAGAIN":
            # Of the keys of a topic some are moved already, or it is a new topic.
            return target
        if ends_connection(reply):
            # The node has become a replica, for example. The host name may lead to another one
            # now, so no connection to this one is used again.
            self._close_own(node)
            self._topology.doubt(node)
            layout = self._topology.find()
            if not layout.is_cluster and layout.nodes[0] != node:
                return _Target(layout.nodes[0])
        return None

    def _exchange(self, calls: Sequence[tuple[_Target, Command]]) -> list[Any]:
        """Send commands to their nodes, and then read all replies; return them in order."""
        by_node: dict[Node, list[int]] = {}
        for place, (target, _) in enumerate(calls):
            by_node.setdefault(target.node, []).append(place)
        replies: list[Any] = [None] * len(calls)
        with ExitStack() as stack:
            connections = {node: stack.enter_context(self._connection(node)) for node in by_node}
            if len(by_node) == 1 and not calls[0][0].is_asking:
                [connection] = connections.values()
                return send_all(connection, [command for _, command in calls])
            for node, places in by_node.items():
                commands: list[Command] = []
                for target, command in (calls[place] for place in places):
                    commands += [("ASKING",), command] if target.is_asking else [command]
                connections[node].send_packed_command([pack(commands)])
            for node, places in by_node.items():
                for place in places:
                    count = 2 if calls[place][0].is_asking else 1
                    replies[place] = read_all(connections[node], count)[-1]
        return replies

    @contextmanager
    def _connection(self, node: Node) -> Iterator[Any]:
        owner = socket_owner()
        with self._lock:
            idle = self._idle.get((owner, node))
            connection, usable_until = idle.pop() if idle else (None, 0.0)
        if connection is not None and self._is_stale(connection, usable_until):
            connection.disconnect()
            connection = None
        if connection is None:
            connection = self._connect(node)
            usable_until = time.monotonic() + spread(CONNECTION_SECONDS)
        self._busy[connection] = os.getpid()
        try:
            yield connection
        except (RedisError, OSError) as error:
            connection.disconnect()
            self._topology.doubt(node)
            raise AppendUncertain(f"{type(error).__name__}: {mask_text(str(error))}") from error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._busy.pop(connection, None)
        with self._lock:
            self._idle.setdefault((owner, node), []).append((connection, usable_until))

    def _connect(self, node: Node) -> Any:
        connection = self._topology.connection(node)
        at_thread_end(self._close_own)
        self._busy[connection] = os.getpid()
        try:
            connection.connect()
            loads = [("SCRIPT", "LOAD", script.source) for script in WRITES]
            for reply in send_all(connection, loads):
                if isinstance(reply, Exception):
                    raise reply
        except (RedisError, OSError) as error:
            connection.disconnect()
            self._topology.doubt(node)
            raise explain(error) from error
        finally:
            self._busy.pop(connection, None)
        self.connections += 1
        return connection

    @staticmethod
    def _is_stale(connection: Any, usable_until: float) -> bool:
        if time.monotonic() >= usable_until:
            return True
        # No reply is due on an idle connection, so if it can be read the server has closed it.
        try:
            return bool(connection.can_read(0))
        except (RedisError, OSError):
            return True


def _failed(reply: Any) -> bool:
    return isinstance(reply, Exception)


def _checked(replies: list[Any], key: str) -> list[Any]:
    """Return ``replies`` of calls about ``key``; raise if a part of them, or all, are errors."""
    failures = [reply for reply in replies if _failed(reply)]
    if not failures:
        return replies
    reason = explain_for_key(key, failures[0])
    if len(failures) < len(replies):
        raise AppendUncertain(f"{len(failures)} of {len(replies)} failed: {reason}")
    raise reason
