"""What a runtime has of sinks: the decorator that registers them, and their runner."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from semantik_realtime.core.words import Words
from semantik_realtime.sink_hooks import SinkBackend
from semantik_realtime.sinks.registry import Handler, Sinks
from semantik_realtime.sinks.runner import SinkRunner


class SinkHost:
    """The part of `semantik_realtime.runtime.Runtime` that has sinks."""

    words: Words
    sink_backend: SinkBackend | None
    """The backend's hooks for sinks; None if it has none."""

    def _have_sinks(self, limit: int, is_away: Callable[[], bool]) -> None:
        self.sinks = Sinks()
        """The sinks that `sink` has registered."""
        self.sink_runner = SinkRunner(self.sinks, lambda: self.sink_backend, is_away, limit)

    def sink(
        self,
        types: str | Iterable[str] | None = None,
        topics: str | Iterable[str] = "job:*",
        *,
        name: str | None = None,
        attempts: int = 10,
        deadline_seconds: float = 30.0,
        at_once: int = 4,
    ) -> Callable[[Handler], Handler]:
        """Return a decorator: the function gets each matching event once for the whole fleet.

        At least once: see docs/sinks.md. The function has one argument, a
        `semantik_realtime.sinks.registry.SinkEvent`, and is a coroutine function,
        or a plain one, which runs in a thread. What it raises makes the event come again.

        Args:
            types: event types, or the application's own words for them; None: all.
            topics: names of topics, or beginnings of names with ``*`` at the end.
            name: identifies the sink in every process and version; by default module and name.
            attempts: after so many that failed the event is a dead letter.
            deadline_seconds: after that a call has failed.
            at_once: events that a process handles at the same time.

        Raises:
            ConfigError: an option is wrong, the name is taken, or the application runs already.
        """
        if types is not None:
            given = [types] if isinstance(types, str) else types
            types = [self.words.type_of(one) for one in given]
        return self.sinks.add(types, topics, name, attempts, deadline_seconds, at_once)
