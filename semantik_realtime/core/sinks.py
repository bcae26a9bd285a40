"""What the sinks of an application decide: which events match, and what follows a failure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from semantik_realtime.core.topic import check_type, name_topic
from semantik_realtime.errors import ConfigError, InvalidInput

MAX_DEAD = 10_000
"""Dead letters that a sink keeps."""
CLAIM_SPARE_SECONDS = 2.0
"""How much longer than its deadline an event is a server's own. Then another one takes it."""
TAKEOVER_SECONDS = 30.0
"""How long the servers with another filter must have taken nothing before this one replaces it."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0
"""Of the pauses between two attempts, each twice as long as the one before."""
MAX_ERROR_CHARACTERS = 500
"""Of an error that is kept with a dead letter."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}")
_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,31}:[A-Za-z0-9_.@=+~-]{0,200}\*|[a-z0-9_]{0,32}\*")


class SinkFilter(msgspec.Struct, frozen=True):
    """Which events a sink gets. The same rule is in ``sink_offer.lua``; one test has both.

    >>> wanted = SinkFilter.of(["job_failed"], "job:*")
    >>> wanted.matches("job:42", "job_failed"), wanted.matches("user:7", "job_failed")
    (True, False)
    """

    types: tuple[str, ...]
    """Sorted. Empty: all."""
    topics: tuple[str, ...]
    """Sorted names of topics; with ``*`` at the end, the beginning of names."""

    @classmethod
    def of(cls, types: str | Iterable[str] | None, topics: str | Iterable[str]) -> SinkFilter:
        """Return the filter for the arguments of ``sink``.

        Raises:
            ConfigError: there is none, or one is no type, no topic or no beginning of topics.
        """
        try:
            wanted = {check_type(one) for one in _texts(types if types is not None else ())}
            names = {_check_pattern(one) for one in _texts(topics)}
        except InvalidInput as error:
            raise ConfigError(f"sink: {error}") from error
        if not names or (types is not None and not wanted):
            raise ConfigError("sink: it needs at least one type and one topic")
        return cls(tuple(sorted(wanted)), tuple(sorted(names)))

    def matches(self, topic: str, type: str) -> bool:
        """Return True if the sink gets an event of that topic and type."""
        if self.types and type not in self.types:
            return False
        return any(
            topic.startswith(one[:-1]) if one.endswith("*") else topic == one for one in self.topics
        )

    def encode(self) -> bytes:
        """Return the filter as backends record it: equal filters, equal bytes."""
        return msgspec.json.encode(self)


def _texts(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _check_pattern(topic: str) -> str:
    if isinstance(topic, str) and _PATTERN.fullmatch(topic):
        return topic
    if "*" in str(topic):
        raise ConfigError(f"sink: in topics a * is at the end: {str(topic)[:80]!r}")
    return name_topic(topic)


def check_sink_name(name: str) -> str:
    """Return ``name`` if a sink may have it.

    >>> check_sink_name("app.tasks.on_end")
    'app.tasks.on_end'

    Raises:
        ConfigError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"no name of a sink: {name[:120]!r} (1 to 100 letters, digits, _ . : -); "
            "give one with name="
        )
    return name


class Fate(StrEnum):
    """What becomes of an event that was taken from a sink's queue."""

    HANDLED = "handled"
    """It is removed."""
    RETRY = "retry"
    """It is given again after a pause."""
    DEAD = "dead"
    """It becomes a dead letter."""
    RETURNED = "returned"
    """It is given again at once, and the attempt does not count: the server stops."""


class Settlement(msgspec.Struct, frozen=True):
    """What becomes of one event, as a backend is told.

    Only HANDLED is accepted from a server whose claim is over: then the others
    would undo what the next one does.
    """

    id: str
    """Of the entry."""
    attempt: int
    """Which one it was; names the claim."""
    fate: Fate
    seconds: float = 0.0
    """Of RETRY: the pause."""
    error: str = ""
    """Of DEAD: why."""


def is_used_up(attempt: int, attempts: int) -> bool:
    """Return True if an attempt is beyond the last one: the ones before ended with their servers.

    >>> is_used_up(10, 10), is_used_up(11, 10)
    (False, True)
    """
    return attempt > attempts


def settle_failure(
    id: str, attempt: int, attempts: int, share: float, error: str, *, is_final: bool = False
) -> Settlement:
    """Return what follows the failure of an attempt.

    Args:
        id: of the entry.
        attempt: which one failed, from 1.
        attempts: after how many an event is a dead letter.
        share: random, from 0 to 1: how much of the second half of the pause is left out, because
            many events fail at the same moment and must not return at the same moment.
        error: why it failed; any text. What UTF-8 cannot encode becomes an escape.
        is_final: whether the handler refuses the event for good.

    >>> settle_failure("1-0", 3, 10, 0.0, "refused").seconds
    4.0
    >>> settle_failure("1-0", 10, 10, 0.0, "refused").fate
    <Fate.DEAD: 'dead'>
    """
    # A half of a surrogate pair, as in the name of a file that is no UTF-8, has no bytes.
    error = error[:MAX_ERROR_CHARACTERS].encode(errors="backslashreplace").decode()
    error = error[:MAX_ERROR_CHARACTERS]
    if is_final or attempt >= attempts:
        return Settlement(id, attempt, Fate.DEAD, error=error)
    # 2**30 s is far beyond the longest pause, and a float.
    pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 30), LONGEST_PAUSE_SECONDS)
    return Settlement(id, attempt, Fate.RETRY, pause * (1 - share / 2), error)
