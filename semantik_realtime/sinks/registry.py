"""The sinks that an application has registered, and the event that a handler gets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from semantik_realtime.core.event import Head
from semantik_realtime.core.sinks import SinkFilter, check_sink_name
from semantik_realtime.core.topic import split_topic
from semantik_realtime.errors import ConfigError
from semantik_realtime.sink_hooks import SinkEntry

OUTCOMES = ("handled", "retried", "dead")
"""What becomes of an event."""

Handler = TypeVar("Handler", bound=Callable[..., Any])

_read_head = msgspec.json.Decoder(Head).decode
_read = msgspec.json.decode


class RejectEvent(Exception):
    """Raise it in a sink: no further attempt can handle the event; it becomes a dead letter."""


class SinkEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What a sink's handler gets. At least once: compare identities before you do it again."""

    identity: str
    """The same each time this event is handled, and of no other event; up to 500 characters."""
    topic: str
    job: str | None
    """The id of the job whose topic it is."""
    type: str
    time: str
    key: str
    state: Any
    """The whole state of ``key`` after the event; None if the key is deleted or `has_state` is
    False."""
    has_state: bool
    data: dict[str, Any]
    terminal: bool
    owner: str | None
    epoch: str
    offset: int
    attempt: int
    """Which attempt to handle it this is, from 1."""

    @classmethod
    def of(cls, entry: SinkEntry) -> SinkEvent:
        """Return the event of an entry.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            head = _read_head(entry.json)
        except msgspec.MsgspecError as error:
            # Older releases of msgspec have errors that are no ValueError.
            raise ValueError(f"not an event: {error}") from error
        kind, ident = split_topic(entry.topic)
        has_state = head.state is not msgspec.UNSET
        return cls(
            identity=entry.identity,
            topic=entry.topic,
            job=ident if kind == "job" else None,
            type=head.type,
            time=head.time,
            key=head.key,
            state=_read(head.state) if isinstance(head.state, msgspec.Raw) else None,
            has_state=has_state,
            data=_read(head.data),
            terminal=head.terminal,
            owner=entry.owner,
            epoch=entry.epoch,
            offset=head.offset,
            attempt=entry.attempt,
        )


class SinkCounts:
    """What this process has done for one sink."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)


class RegisteredSink(msgspec.Struct, frozen=True, eq=False):
    """A handler with its options; see `Sinks.add`."""

    name: str
    handler: Callable[[SinkEvent], Any]
    filter: SinkFilter
    attempts: int
    deadline_seconds: float
    at_once: int
    counts: SinkCounts

    @property
    def is_coroutine(self) -> bool:
        """Whether the handler is a coroutine function, or an object whose call is one."""
        handler = self.handler
        while isinstance(handler, functools.partial):
            handler = handler.func
        return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004
        )


class Sinks:
    """The sinks of one runtime, by name."""

    def __init__(self) -> None:
        self._sinks: dict[str, RegisteredSink] = {}
        # Set by the runner: a sink that came later would never be recorded.
        self.is_running = False

    def __iter__(self) -> Iterator[RegisteredSink]:
        return iter(list(self._sinks.values()))

    def __len__(self) -> int:
        return len(self._sinks)

    def add(
        self,
        types: str | Iterable[str] | None,
        topics: str | Iterable[str],
        name: str | None,
        attempts: int,
        deadline_seconds: float,
        at_once: int,
    ) -> Callable[[Handler], Handler]:
        """Return a decorator that registers a handler.

        Raises:
            ConfigError: an option is wrong, the name is taken, or the sinks run already.
        """
        wanted = SinkFilter.of(types, topics)
        if attempts < 1 or deadline_seconds <= 0 or not 1 <= at_once <= 1000:
            raise ConfigError(
                "sink: attempts is 1 or more, deadline_seconds more than 0, at_once 1 to 1000"
            )

        def register(handler: Handler) -> Handler:
            sink = RegisteredSink(
                check_sink_name(name or _name_of(handler)),
                handler,
                wanted,
                attempts,
                deadline_seconds,
                at_once,
                SinkCounts(),
            )
            if self.is_running:
                raise ConfigError(f"sink {sink.name}: register it before the application starts")
            if sink.name in self._sinks:
                raise ConfigError(f"there is a sink {sink.name} already; give one of them a name=")
            self._sinks[sink.name] = sink
            return handler

        return register


def _name_of(handler: Callable[..., Any]) -> str:
    module = getattr(handler, "__module__", "")
    name = getattr(handler, "__qualname__", "")
    # Neither is the same in every process.
    if not name or module == "__main__" or "<" in name:
        raise ConfigError(f"sink {name or handler!r}: a function like this needs a name=")
    return f"{module}.{name}"
