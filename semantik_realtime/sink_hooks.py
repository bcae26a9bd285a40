"""The hooks of a backend that has queues for the sinks of an application. All or none of them.

A backend without them works, and an application that registers a sink is
refused when it starts. Calls are synchronous, may come from any thread and
have a deadline of their own, as the writes of `semantik_realtime.hookspecs.Backend`.
A plugin that changes what is stored wraps `sink_take` and `sink_dead`, beside
the hooks that read a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from semantik_realtime.core.sinks import Settlement
from semantik_realtime.hookspecs import PROJECT, hookspec


class SinkEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An event in the queue of a sink."""

    id: str
    """Of the entry; opaque. A dead letter and a replayed one have another."""
    attempt: int = 0
    """How often it was taken, this time included."""
    identity: str
    """Names the event: the same whenever it is given, also after a failover that lost its append.

    The topic, ``/``, the draft's producer, ``.`` and its number."""
    topic: str
    epoch: str
    owner: str | None
    """The topic's, when the event was appended."""
    json: bytes
    """The event as it is stored, with its offset."""


class DeadEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An event that no attempt could handle."""

    entry: SinkEntry
    error: str
    died_at: float
    """In seconds since 1970, by the server's clock."""


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The condition of a sink's queue."""

    name: str
    filter: bytes
    """As `semantik_realtime.core.sinks.SinkFilter.encode` returns it."""
    queued: int
    """Events that are not handled yet, those included that are handled now."""
    held: int
    """How many of them were taken: they are handled now, or wait for their next attempt."""
    dead: int
    handled: int
    """Since the sink was recorded first."""
    lost: int
    """Events and dead letters that were removed because there were too many."""
    oldest_seconds: float
    """How long the oldest event has been in the queue; 0 without one."""
    taken_seconds: float | None
    """How long ago a server asked for events; None: never."""
    error: str = ""
    """Why the counts cannot be read, and are 0; else empty. Another program has spoiled a key."""

    @classmethod
    def unreadable(cls, name: str, filter: bytes, error: str) -> SinkStatus:
        """Return the condition of a sink whose counts cannot be read."""
        return cls(
            name=name,
            filter=filter,
            queued=0,
            held=0,
            dead=0,
            handled=0,
            lost=0,
            oldest_seconds=0.0,
            taken_seconds=None,
            error=error or "unknown",
        )


class SinkBackend(Protocol):
    """Hooks for sinks. Names of sinks are checked by `semantik_realtime.core.sinks`."""

    @hookspec(firstresult=True)
    def sink_open(self, name: str, filter: bytes, limit: int, idle_seconds: float) -> bool:
        """Record a sink: from now on each append puts matching events into its queue, atomically.

        A queue keeps at most ``limit`` events; of more, the oldest are removed and counted as
        lost. A sink that is recorded with another filter gets this one if nobody
        has taken from it for ``idle_seconds``; entries stay. Return True if
        ``filter`` is recorded now. Idempotent.

        Raises:
            BackendRefused: this server cannot have sinks; the message says why.
        """

    @hookspec(firstresult=True)
    def sink_take(
        self, name: str, filter: bytes, limit: int, seconds: float
    ) -> Sequence[SinkEntry] | None:
        """Return events that nobody else has, each for ``seconds``; at most ``limit`` of them.

        Those whose time is over come first, then new ones in the order of
        their append. With a ``limit`` of 0 none, and it says that this filter is in use. None: the
        sink is not recorded with ``filter``.
        """

    @hookspec(firstresult=True)
    def sink_settle(self, name: str, settlements: Sequence[Settlement]) -> int:
        """Do what becomes of events. Return how many it was done for; repeating is safe."""

    @hookspec(firstresult=True)
    def sink_status(self) -> Sequence[SinkStatus]:
        """Return the condition of every recorded sink, by name."""

    @hookspec(firstresult=True)
    def sink_dead(self, name: str, after: str, limit: int) -> Sequence[DeadEntry]:
        """Return dead letters, the oldest first, after the one with the id ``after`` ("": all)."""

    @hookspec(firstresult=True)
    def sink_replay(self, name: str, ids: Sequence[str]) -> int:
        """Put dead letters into the queue again, with no attempts. Return how many were found."""

    @hookspec(firstresult=True)
    def sink_discard(self, name: str, ids: Sequence[str]) -> int:
        """Remove dead letters. Return how many were found."""

    @hookspec(firstresult=True)
    def sink_forget(self, name: str) -> bool:
        """Remove a sink with all its events. Return True if it was recorded."""


SINK_HOOKS = tuple(
    name for name, hook in vars(SinkBackend).items() if hasattr(hook, f"{PROJECT}_spec")
)
"""The names of the hooks of `SinkBackend`."""
