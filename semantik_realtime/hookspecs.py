"""The contract with backends and hosts.

A backend implements the hooks of `BackendSpec`; a host (the web application)
those of `HostSpec`. Both are ordinary pluggy plugins::

    from semantik_realtime.hookspecs import hookimpl

    class MyBackend:
        @hookimpl
        def publish(self, drafts): ...

Writes are synchronous, may come from any thread and have a deadline of their
own; reads are coroutines on the loop that called `BackendSpec.open`. What every
hook promises is stated as tests in `semantik_realtime.testing.contract.BackendContract`:
a backend exists when it passes them on its default settings.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import pluggy

from semantik_realtime.core.event import Cursor, Draft, Event, Receipt
from semantik_realtime.core.resume import Reason

PROJECT = "semantik_realtime"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Sink(Protocol):
    """Who is told about a topic. Called on the reader's loop; must not block or raise."""

    def events(self, topic: str, epoch: str, prev: int, events: Sequence[Event]) -> None:
        """New events; the first follows the offset ``prev``. Never empty."""

    def interrupted(self, topic: str) -> None:
        """The feed was broken and works again: anything since may be missing."""

    def gone(self, topic: str) -> None:
        """The topic was deleted."""


class Snapshot(msgspec.Struct, frozen=True):
    """One atomic look at a topic.

    ``cursor`` is None when the backend does not know the topic; ``deleted``
    then says whether that is because it was deleted, for as long as its late
    drafts are refused. With
    ``reason`` None, ``events`` are all events after the asked cursor and
    ``states`` is empty; with a reason, ``states`` has for each key its last
    event with a state (as JSON, offset included), and ``events`` the newest
    history that was asked for, oldest first, up to ``cursor``.
    """

    cursor: Cursor | None
    owner: str | None = None
    reason: Reason | None = Reason.NEW
    states: dict[str, bytes] = {}
    events: Sequence[Event] = ()
    deleted: bool = False


class Top(msgspec.Struct, frozen=True):
    """Where a topic's log ends, and whose it is."""

    cursor: Cursor
    owner: str | None = None


class Status(msgspec.Struct, frozen=True):
    """How a backend is.

    ``warnings`` are sentences for an operator: what may lose events, and what
    to set instead. ``clock_ahead_seconds`` is how far the server's clock is
    ahead of ours; None: it has none, or did not say.
    """

    backend: str
    reachable: bool
    server: str = ""
    warnings: Sequence[str] = ()
    clock_ahead_seconds: float | None = None


class Credentials(msgspec.Struct, frozen=True):
    """What came with a request: the token if any, and the headers in lower case."""

    token: str | None
    headers: Mapping[str, str] = {}


class BackendSpec:
    """What a backend does. All hooks are needed; exactly one backend is registered."""

    @hookspec(firstresult=True)
    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:  # type: ignore[empty-body]
        """Append drafts, in order, each at most once; one receipt each.

        Synchronous, from any thread, bounded in time (about 5 s). Drafts of
        one topic are appended in the given order. A draft whose producer and
        number are known is answered, not appended; an outdated attempt is
        refused (`semantik_realtime.core.fence`).

        Raises:
            BackendUnavailable: nothing was appended.
            AppendUncertain: some may have been; send all of them again.
            BackendRefused: sending again will not help.
        """

    @hookspec(firstresult=True)
    def claim(self, topic: str, job: str, token: str) -> int:  # type: ignore[empty-body]
        """The number of a new attempt of ``job``: one above the newest, atomically.

        The same ``token`` gets the same number, so a retry is safe. From then
        on drafts of older attempts are stale. 0: the topic was deleted, and
        whatever the attempt sends will be refused. Synchronous, any thread.
        """

    @hookspec(firstresult=True)
    def subscribe(self, topic: str, sink: Sink) -> Awaitable[None]:  # type: ignore[empty-body]
        """Feed ``sink`` with a topic's events.

        When it returns, every later append reaches the sink, or the sink
        hears of an interruption. One sink a topic; subscribing twice replaces it.
        """

    @hookspec(firstresult=True)
    def unsubscribe(self, topic: str) -> Awaitable[None]:  # type: ignore[empty-body]
        """Stop feeding. Not subscribed: nothing happens."""

    @hookspec(firstresult=True)
    def snapshot(  # type: ignore[empty-body]
        self, topic: str, after: Cursor | None, history: int
    ) -> Awaitable[Snapshot]:
        """One atomic look at a topic: replay after a cursor, or states with the reason.

        ``history`` (0 to 1000): with states, also so many of the newest events.
        """

    @hookspec(firstresult=True)
    def tops(self, topics: Sequence[str]) -> Awaitable[dict[str, Top]]:  # type: ignore[empty-body]
        """Where the topics end; unknown ones are absent. Cheap for thousands."""

    @hookspec(firstresult=True)
    def delete(self, topic: str) -> bool:  # type: ignore[empty-body]
        """Forget a topic at once and refuse its late drafts for the grace; was it there?

        Its sinks, in every process, hear `Sink.gone`. Synchronous, any thread.
        """

    @hookspec(firstresult=True)
    def lease(  # type: ignore[empty-body]
        self, name: str, holder: str, limit: int, seconds: float
    ) -> bool:
        """Take or renew one of ``limit`` places under ``name``, for ``seconds``.

        Counted over the fleet. False: all places are taken by others.
        Synchronous, any thread.
        """

    @hookspec(firstresult=True)
    def release(self, name: str, holder: str) -> bool:  # type: ignore[empty-body]
        """Give a place back; was it held? Synchronous, any thread."""

    @hookspec(firstresult=True)
    def open(self) -> Awaitable[None]:  # type: ignore[empty-body]
        """Start reading on the running loop. Idempotent.

        Raises:
            BackendUnavailable, BackendRefused: reads will not work.
        """

    @hookspec(firstresult=True)
    def close(self) -> Awaitable[None]:  # type: ignore[empty-body]
        """Stop reading; sinks hear nothing any more. Idempotent; `open` may follow."""

    @hookspec(firstresult=True)
    def close_writer(self) -> None:
        """Give up the connections for writing; the next write makes new ones. Also after a fork."""

    @hookspec(firstresult=True)
    def status(self) -> Awaitable[Status]:  # type: ignore[empty-body]
        """How the backend is, asked of the server. Never raises for an outage."""


class HostSpec:
    """What the web application knows better. Each may be a plain function or a coroutine."""

    @hookspec(firstresult=True)
    def authenticate(self, credentials: Credentials) -> str | Awaitable[str | None] | None:
        """Who asks: a user id. None: no opinion, the built-in JWT rule decides.

        Raises:
            AccessError: the credential is wrong, for certain.
        """

    @hookspec(firstresult=True)
    def authorize(
        self, user: str, topic: str, owner: str | None
    ) -> bool | Awaitable[bool | None] | None:
        """May ``user`` watch ``topic``? None: no opinion, the built-in owner rule decides."""

    @hookspec(firstresult=True)
    def recall(
        self, topic: str
    ) -> Mapping[str, Mapping[str, Any]] | Awaitable[Mapping[str, Mapping[str, Any]] | None] | None:
        """The host's own record of a topic, {key: state}, when the backend knows nothing of it.

        Raises:
            Exception: any; nobody can tell now, and it is asked again.
        """
