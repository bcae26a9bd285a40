"""The last message of topics whose ends are asked for again and again. Pure.

A web server compares the ends of all its topics every few seconds. Of those
that have got nothing since, the server need not send the last message again:
what is read is only what is newer than the last reading.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
from semantik_realtime.core.event import Cursor

MAX_TOPICS = 20_000
"""Whose last messages are kept; then those that were read longest ago go."""
KEEP_SECONDS = 300.0
"""How long at most: messages that somebody else has removed are noticed after that."""


class LastMessage(msgspec.Struct, frozen=True, gc=False):
    """The end of a log."""

    cursor: Cursor
    owner: str | None
    expires_at: float
    """By the server's clock, in seconds since 1970."""
    is_unknown: bool
    """True if readers do not know the topic: it is deleted, or only claimed."""


class _Entry(msgspec.Struct, gc=False):
    last: LastMessage | None
    """None: the log has no message."""
    as_of_seq: int
    """The stream's last sequence when that was read."""
    read_again_at: float


class TopCache:
    """The ends of logs by subject, each as of a sequence of the stream. For one connection.

    >>> cache = TopCache()
    >>> cache.note(["a", "b"], {"a": LastMessage(Cursor("e", 1, 0), None, 9.0, False)}, 7, now=0.0)
    >>> cache.split(["a", "b", "c"], now=1.0)
    (['a', 'b'], ['c'], 8)
    >>> cache.split(["a"], now=KEEP_SECONDS)
    ([], ['a'], 0)
    >>> cache.end_of("a").cursor.offset
    1
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def split(self, subjects: Iterable[str], now: float) -> tuple[list[str], list[str], int]:
        """Return which subjects need only their news, which must be read, and the news' sequence.

        Args:
            subjects: of logs.
            now: the steady clock, in seconds.
        """
        known: list[str] = []
        unknown: list[str] = []
        oldest_seq: int | None = None
        for subject in subjects:
            entry = self._entries.get(subject)
            if entry is None or now >= entry.read_again_at:
                unknown.append(subject)
            else:
                known.append(subject)
                if oldest_seq is None or entry.as_of_seq < oldest_seq:
                    oldest_seq = entry.as_of_seq
        return known, unknown, 0 if oldest_seq is None else oldest_seq + 1

    def note(
        self, subjects: Iterable[str], found: dict[str, LastMessage], as_of_seq: int, now: float
    ) -> None:
        """Note what was read of ``subjects`` for the first time, or again as a whole."""
        for subject in subjects:
            self._entries.pop(subject, None)
            # Not all at the same time.
            keep = KEEP_SECONDS * random.uniform(0.5, 1)  # noqa: S311
            self._entries[subject] = _Entry(found.get(subject), as_of_seq, now + keep)
        while len(self._entries) > MAX_TOPICS:
            del self._entries[next(iter(self._entries))]

    def note_news(
        self, subjects: Iterable[str], found: dict[str, LastMessage], as_of_seq: int
    ) -> bool:
        """Note the news of known subjects. Return False if they must be read as a whole.

        The stream is older than they are: it has lost messages, or the server that answered is
        behind. Or they were forgotten in the meantime.
        """
        entries = {subject: self._entries.get(subject) for subject in subjects}
        if any(entry is None or entry.as_of_seq > as_of_seq for entry in entries.values()):
            self._entries.clear()
            return False
        for subject, entry in entries.items():
            if entry is not None:
                entry.last = found.get(subject, entry.last)
                entry.as_of_seq = as_of_seq
        return True

    def end_of(self, subject: str) -> LastMessage | None:
        """Return the end of a log as it is known; None if it has none."""
        entry = self._entries.get(subject)
        return entry.last if entry is not None else None
