"""The contract with backends, with plugins that wrap one, and with the host application.

A backend has every hook of `Backend`; a host those of `HostSpec` that it wants.
All are ordinary pluggy hooks::

    from semantik_realtime.hookspecs import hookimpl

    class MyBackend:
        @hookimpl
        def publish(self, drafts): ...

Writes (`publish`, `claim`, `delete`, `lease`, `release`, `hold`, `overdue`) are
synchronous, may come from any thread and have a deadline of their own, about 5 s. Reads are
coroutines on the loop that called `Backend.open`. Each promise of these
docstrings is a test of the contract suite, `semantik_realtime.testing.contract`:
a backend conforms when it passes the suite with its default settings.

A plugin may wrap any hook of the backend with ``@hookimpl(wrapper=True)``, to
encrypt, to audit or to compare two engines::

    class Audit:
        @hookimpl(wrapper=True)
        def publish(self, drafts):
            receipts = yield
            log(drafts, receipts)
            return receipts

        @hookimpl(wrapper=True)
        def snapshot(self, topic, after, history):
            reading = yield
            return self.audited(reading)  # a coroutine that awaits the reading

Events are read by three hooks: `subscribe`, `snapshot` and `page`. A plugin that
changes what is stored wraps all of them.

Where a plugin takes part, the arguments may be changed in place, because they
are made for this one call: ``drafts`` is a list whose items the plugin may
replace, and the sink of `Backend.subscribe` is a `SinkProxy` whose ``target``
it may replace. A hook in which no plugin takes part is called directly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec
import pluggy

from semantik_realtime.core.event import Cursor, Draft, Event, Receipt
from semantik_realtime.core.holding import Holding
from semantik_realtime.core.resume import Reason

PROJECT = "semantik_realtime"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Sink(Protocol):
    """Receives a topic's events from the backend, on the reader's loop. Must not block or raise."""

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        """Receive new events; the first one follows the position ``prev``. Never empty.

        The chain of ``prev`` shows whether the events continue the history that
        the reader knows, or one that a failover has rewritten.
        """

    def interrupted(self, topic: str) -> None:
        """The subscription broke and works again: events in between may be missing.

        Called before any event that arrives after the break: such an event may
        belong to a log that a failover has rewritten.
        """

    def gone(self, topic: str) -> None:
        """The topic was deleted."""


class SinkProxy:
    """The sink that a plugin around `Backend.subscribe` sees, made for one call.

    The plugin replaces ``target`` by a sink of its own that passes the events on.
    """

    def __init__(self, target: Sink) -> None:
        self.target = target

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        self.target.events(topic, prev, events)

    def interrupted(self, topic: str) -> None:
        self.target.interrupted(topic)

    def gone(self, topic: str) -> None:
        self.target.gone(topic)


class Snapshot(msgspec.Struct, frozen=True):
    """What one atomic read of a topic returns.

    ``cursor`` is None when the backend does not know the topic; ``deleted`` is
    then True if the topic was deleted and its late drafts are still refused.

    With ``reason`` None it is a replay: ``events`` are all events after the
    cursor of the call, and ``states`` is empty. With a reason, ``states`` maps
    each key to its last event with a state (JSON, offset included), and
    ``events`` is the newest history, as much as the call asked for and the
    setting ``max_read_bytes`` allows, oldest first, up to ``cursor``.
    """

    cursor: Cursor | None
    owner: str | None = None
    reason: Reason | None = Reason.NEW
    states: dict[str, bytes] = {}
    events: Sequence[Event] = ()
    deleted: bool = False


class Page(msgspec.Struct, frozen=True):
    """A part of a log, read forward from an offset.

    ``cursor`` is the end of the log, or None when the backend does not know the
    topic. ``events`` are the oldest ones after the offset, oldest first;
    ``more`` is True if the log has further ones after them.
    """

    cursor: Cursor | None
    events: Sequence[Event] = ()
    more: bool = False


class Top(msgspec.Struct, frozen=True):
    """The end of a topic's log, and the topic's owner."""

    cursor: Cursor
    owner: str | None = None


class Status(msgspec.Struct, frozen=True):
    """The condition of a backend.

    ``server`` names the server and its version, or the error when it is not
    reachable. ``warnings`` are sentences for an operator: what may lose events,
    and what to set instead. ``clock_ahead_seconds`` is how far the server's
    clock is ahead of this process's; None if that is unknown. ``address`` is
    where the server was looked for, without passwords.
    """

    backend: str
    reachable: bool
    server: str = ""
    warnings: Sequence[str] = ()
    clock_ahead_seconds: float | None = None
    address: str = ""


class Credentials(msgspec.Struct, frozen=True):
    """The token of a request, if it has one, and its headers with names in lower case."""

    token: str | None
    headers: Mapping[str, str] = {}


class Identity(msgspec.Struct, frozen=True):
    """An authenticated user, and when the credential expires."""

    user: str | int | UUID
    """The user id. The server itself keeps it as a text."""
    expires_at: float | datetime | None = None
    """In seconds since 1970, or a time with its zone; None: it does not expire.

    The server itself keeps it in seconds. When it is over, the server ends the
    user's connections.
    """


class NoOpinion(Enum):
    """The type of `NO_OPINION`."""

    NO_OPINION = "no opinion"


NO_OPINION: Final = NoOpinion.NO_OPINION
"""What `HostSpec.authenticate` returns to leave the decision to the built-in rule for tokens."""

Authenticated = Identity | str | int | UUID | NoOpinion | None
"""What `HostSpec.authenticate` returns: who it is, or who decides."""


class Backend(Protocol):
    """The hooks of a backend: pluggy's specification and the type, in one. All are required.

    Exactly one backend is registered.
    """

    @hookspec(firstresult=True)
    def publish(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        """Append drafts in the given order, each at most once; return one receipt for each.

        A draft whose producer and number are known is answered with
        ``DUPLICATE`` and not appended; a draft of an outdated attempt is
        refused (`semantik_realtime.core.fence`), with what follows it in this
        call if it begins its attempt, and so is one whose owner is
        not the topic's (`semantik_realtime.core.ownership`). The first draft
        with an owner gives a topic its owner; if the topic has events already,
        a new epoch begins with that draft, without these events and states.
        What the server refuses of one topic alone gets the outcome ``refused``.

        Raises:
            BackendUnavailable: nothing was appended.
            AppendUncertain: some drafts may have been appended; send all of them again.
            BackendRefused: the server refused, and sending again will not help.
        """

    @hookspec(firstresult=True)
    def claim(self, topic: str, job: str, token: str, owner: str | None) -> int:
        """Return the number of a new attempt of ``job``: one above the newest, atomically.

        The same ``token`` gets the same number, so a retry is safe. From then
        on drafts of older attempts are refused as stale. Return 0 if the topic
        was deleted: all drafts of the attempt will be refused. Return -1 if the
        topic belongs to another owner than ``owner``: nothing was claimed. A
        topic without events and owner gets ``owner``, unless that is None.
        """

    @hookspec(firstresult=True)
    def subscribe(self, topic: str, sink: Sink) -> Awaitable[None]:
        """Deliver a topic's events to ``sink``.

        After it has returned, every later append reaches the sink, or the sink
        is called with `Sink.interrupted`. After a break `Sink.interrupted` comes
        before the first event of the new connection. A topic has one sink; a
        second call replaces it.
        """

    @hookspec(firstresult=True)
    def unsubscribe(self, topic: str) -> Awaitable[None]:
        """Stop delivering. Does nothing if the topic is not subscribed."""

    @hookspec(firstresult=True)
    def snapshot(self, topic: str, after: Cursor | None, history: int) -> Awaitable[Snapshot]:
        """Read a topic atomically: the events after a cursor, or the states with the reason.

        ``history`` (0 to 1000) is how many of the newest events come with the
        states; of these only the newest that together have at most
        ``max_read_bytes``, but always one. A replay that would have more bytes
        becomes a snapshot (`Reason.TOO_FAR`), unless it is a single event.
        Nothing that is not returned is read, as far as the engine allows.
        """

    @hookspec(firstresult=True)
    def page(self, topic: str, after: int, limit: int) -> Awaitable[Page]:
        """Read the oldest events of the log after the offset ``after``, atomically.

        At most ``limit`` (1 to 1000) of them, and at most ``max_read_bytes``,
        but always one. A reader that continues after the last offset of each
        page reads the whole log without loss or repetition.
        """

    @hookspec(firstresult=True)
    def tops(self, topics: Sequence[str]) -> Awaitable[dict[str, Top]]:
        """Return where the topics end; unknown ones are absent. Cheap for thousands of topics."""

    @hookspec(firstresult=True)
    def delete(self, topic: str) -> bool:
        """Delete a topic at once, and refuse its late drafts for the grace time.

        Its sinks in every process are called with `Sink.gone`. Return True if
        the topic was known.
        """

    @hookspec(firstresult=True)
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        """Take or renew one of ``limit`` places under ``name`` for ``seconds``.

        Places are counted over the fleet. Return False if others hold all of them.
        """

    @hookspec(firstresult=True)
    def release(self, name: str, holder: str) -> bool:
        """Release a place. Return True if it was held."""

    @hookspec(firstresult=True)
    def hold(
        self, holder: str, jobs: Mapping[str, bytes], ended: Sequence[str], seconds: float
    ) -> bool:
        """Hold jobs for a worker process, which lives for ``seconds`` more by the server's clock.

        ``jobs`` (id to record, which the backend does not read) are added or
        replaced; those in ``ended`` are removed, unless ``jobs`` has them too. The
        others stay held, and the deadline counts for all of them. A holder
        without jobs is forgotten. Idempotent.

        Return True if something was held for ``holder`` before the call. False:
        it is new, or all its jobs had ended, or `overdue` has given them to
        somebody, or the engine has lost its memory; now only ``jobs`` are held. A
        process that runs others too then calls again with all of them, and does
        so after an ``AppendUncertain`` too, because then the answer is lost.

        Raises:
            ValueError: ``holder`` has more than 200 characters, a record more than
                4096 bytes, or the call more than 10,000 jobs.
        """

    @hookspec(firstresult=True)
    def overdue(self, seconds: float) -> Sequence[Holding]:
        """Return the jobs of processes whose deadline is over, the oldest first; often none.

        Of several callers one gets them. They are given again to the next caller
        after ``seconds``, until ``hold(holding.holder, {}, ended, …)`` has removed
        them all; that call with no ``ended`` gets a longer time. A call returns
        at most 16 holders, and none after one with which it has 1000 jobs. What
        nobody asks for is forgotten a week after its deadline.
        """

    @hookspec(firstresult=True)
    def open(self) -> Awaitable[None]:
        """Start reading on the running loop. Idempotent.

        Raises:
            BackendUnavailable, BackendRefused: reads will not work.
        """

    @hookspec(firstresult=True)
    def close(self) -> Awaitable[None]:
        """Stop reading; no sink is called any more. Idempotent; `open` may follow."""

    @hookspec(firstresult=True)
    def close_writer(self) -> None:
        """Close the connections for writing; the next write opens new ones. Also after a fork."""

    @hookspec(firstresult=True)
    def status(self) -> Awaitable[Status]:
        """Ask the server for its condition. Never raises for an outage."""


BACKEND_HOOKS = tuple(
    name for name, hook in vars(Backend).items() if hasattr(hook, f"{PROJECT}_spec")
)
"""The names of the hooks of `Backend`."""


class HostSpec:
    """What only the host application knows. A hook may be a plain function or a coroutine.

    The plugins are asked one after the other, the one registered last first;
    the first that does not return None answers. All together have 5 s.
    """

    @hookspec(firstresult=True)
    def authenticate(self, credentials: Credentials) -> Authenticated | Awaitable[Authenticated]:
        """Return the user id: a text, an integer or a UUID; or an `Identity`, which may expire.

        None: this plugin does not accept the credential. If no plugin accepts
        it, the client is refused. `NO_OPINION`: the built-in rule for tokens
        decides, unless another plugin returns None or a user. Without any such
        hook that rule decides alone.

        Raises:
            AccessError: the client is refused, and no other plugin is asked. An
                ``HTTPException`` with a status from 400 to 499 has the same
                effect, but for 408 and 429.
            Exception: any other; the client is asked to try again later.
        """

    @hookspec(firstresult=True)
    def authorize(
        self, user: str, topic: str, owner: str | None
    ) -> bool | NoOpinion | Awaitable[bool | NoOpinion | None] | None:
        """Return True if ``user`` may watch ``topic``. None: the built-in owner rule decides.

        Raises:
            Exception: as `authenticate`; refused means False.
        """

    @hookspec(firstresult=True)
    def recall(
        self, topic: str
    ) -> Mapping[str, Mapping[str, Any]] | Awaitable[Mapping[str, Mapping[str, Any]] | None] | None:
        """Return the host's own record of a topic, {key: state}, or None if it has none.

        Called when the backend does not know the topic, and while it is away.

        Raises:
            Exception: any; the record cannot be read now, and is asked for again later.
        """

    @hookspec(firstresult=True)
    def outcome(self, job: str) -> Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None:
        """Return how a job ended: members of a state, with a ``status`` that has ended, or None.

        Called before a job is called lost. Without an answer in time it is lost.
        """
