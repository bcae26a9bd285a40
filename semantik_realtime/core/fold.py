"""Events to state, and the rules a reader of the wire follows (R1 to R6 of docs/protocol.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.core.event import Head, StateChange
from semantik_realtime.core.lifecycle import has_ended


def fold(states: dict[str, msgspec.Raw], heads: Iterable[Head]) -> None:
    """Bring ``states`` up to date, in place (R1): the last state of each key stands."""
    for head in heads:
        if not head.key or head.state is msgspec.UNSET:
            continue
        if head.change is StateChange.DROP:
            states.pop(head.key, None)
        else:
            states[head.key] = head.state


def is_ahead(state: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one account of a job is further than another (R6).

    >>> is_ahead({"attempt": 2}, {"attempt": 1, "status": "completed"})
    True
    >>> is_ahead({"status": "lost"}, {"attempt": 1, "status": "running"})
    True
    >>> is_ahead({"progress": {"current": 3}}, {"progress": {"current": 3}})
    False
    """
    attempt, other_attempt = _number(state.get("attempt")), _number(other.get("attempt"))
    if attempt < other_attempt or attempt > other_attempt:
        return attempt > other_attempt
    if has_ended(state) or has_ended(other):
        return not has_ended(other)
    return _current(state) > _current(other)


class View:
    """What a reader knows of one topic.

    Built from server frames already decoded to dicts; the browser's
    ``reader.js`` is the same thing, and both run ``tests/vectors/reader.json``
    and ``overlay.json``. After a gap subscribe again with ``cursor``: until
    the answer, live events are ignored.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.folded: dict[str, Any] = {}
        """The states at ``cursor``."""
        self.overlay: dict[str, Any] = {}
        """Provisional states, shown in place of the folded ones."""
        self.offset = 0
        self.cursor: str | None = None
        self.reason: str | None = None
        """Why the last snapshot was sent."""
        self.synced = False
        """Whether live events are taken. Set it to False when the connection ends."""
        self._last: dict[str, Any] | None = None

    @property
    def states(self) -> Mapping[str, Any]:
        """What is to be shown: the last state of each key, the overlay applied."""
        return {**self.folded, **self.overlay} if self.overlay else self.folded

    def sync(self, frame: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Take a ``sync``; returns the events to show, or None if it left a gap (R2, R3).

        Of the history that comes with a snapshot, what was not shown before is
        returned too, and not folded.
        """
        if frame["mode"] == "replay":
            self.synced = True
            events = self.batch(frame)
            self.restored()
            return events
        if frame["mode"] != "snapshot":
            return []
        self.folded = dict(frame.get("states") or {})
        self.offset = int(frame["offset"])
        self.cursor = frame.get("cursor")
        self.reason = frame.get("reason")
        self.synced = True
        self.restored()
        return self._show(self._unseen(frame.get("events") or ()))

    def batch(self, batch: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Take live events; returns the new ones, or None if there is a gap (R2)."""
        if not self.synced:
            return []
        if batch["prev"] > self.offset:
            self.synced = False
            return None
        fresh = [event for event in batch.get("events", ()) if event["offset"] > self.offset]
        changed = {e["key"]: e["state"] for e in fresh if "key" in e and "state" in e}
        for key, state in changed.items():
            if state is None:
                self.folded.pop(key, None)
            else:
                self.folded[key] = state
        self._lift(self.overlay.keys() & changed.keys())
        if batch["offset"] > self.offset:
            self.offset = int(batch["offset"])
            self.cursor = batch["cursor"]
        return self._show(fresh)

    def behind(self, top: Mapping[str, Any]) -> bool:
        """Whether ``tops`` shows that something is missing: then that is a gap (R4)."""
        if top["offset"] <= self.offset:
            return False
        self.synced = False
        return True

    def provisional(self, states: Mapping[str, Any]) -> bool:
        """Lay ``states`` over the folded ones; whether any of them was taken (R6).

        Nothing but the overlay changes, and no key moves back.
        """
        taken = {key: state for key, state in states.items() if self._is_taken(key, state)}
        self.overlay.update(taken)
        return bool(taken)

    def restored(self) -> None:
        """Drop the overlay, but where the log is yet to catch up or to answer (R6)."""
        if self.synced:
            self._lift(set(self.overlay))

    def _is_taken(self, key: str, state: Mapping[str, Any]) -> bool:
        shown = self.overlay.get(key, self.folded.get(key))
        if shown is None or is_ahead(state, shown):
            return True
        return not (is_ahead(shown, state) or has_ended(shown))

    def _lift(self, keys: Iterable[str]) -> None:
        for key in keys:
            folded = self.folded.get(key)
            if folded is None or has_ended(folded) or not is_ahead(self.overlay[key], folded):
                del self.overlay[key]

    def _show(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if events:
            self._last = events[-1]
        return events

    def _unseen(self, history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        # An offset alone does not tell: a new epoch gives it out again.
        if self._last is not None:
            last = _identity(self._last)
            for index, event in enumerate(history):
                if _identity(event) == last:
                    return list(history[index + 1 :])
        return list(history)


def _identity(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(event.get(member) for member in ("offset", "type", "time", "key"))


def _current(state: Mapping[str, Any]) -> float:
    progress = state.get("progress")
    return _number(progress.get("current") if isinstance(progress, Mapping) else None)


def _number(value: object) -> float:
    # What is no number is NaN, and neither higher nor lower than anything. As in JSON, and not
    # as in Python, true is none.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return math.nan
