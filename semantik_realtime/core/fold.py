"""Events to state, and the rules a reader of the wire follows (R1 to R5 of docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.core.event import Head, StateChange


def fold(states: dict[str, msgspec.Raw], heads: Iterable[Head]) -> None:
    """Bring ``states`` up to date, in place (R1): the last state of each key stands."""
    for head in heads:
        if not head.key or head.state is msgspec.UNSET:
            continue
        if head.change is StateChange.DROP:
            states.pop(head.key, None)
        else:
            states[head.key] = head.state


class View:
    """What a reader knows of one topic.

    Built from server frames already decoded to dicts; the browser's
    ``reader.js`` is the same thing, and both run ``tests/vectors/reader.json``.
    After a gap subscribe again with ``cursor``: until the answer, live events
    are ignored.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.states: dict[str, Any] = {}
        self.offset = 0
        self.cursor: str | None = None
        self.reason: str | None = None
        """Why the last snapshot was sent."""
        self.synced = False
        """Whether live events are taken. Set it to False when the connection ends."""
        self._last: dict[str, Any] | None = None

    def sync(self, frame: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Take a ``sync``; returns the events to show, or None if it left a gap (R2, R3).

        Of the history that comes with a snapshot, what was not shown before is
        returned too, and not folded.
        """
        if frame["mode"] == "replay":
            self.synced = True
            return self.batch(frame)
        if frame["mode"] != "snapshot":
            return []
        self.states = dict(frame.get("states") or {})
        self.offset = int(frame["offset"])
        self.cursor = frame.get("cursor")
        self.reason = frame.get("reason")
        self.synced = True
        return self._show(self._unseen(frame.get("events") or ()))

    def batch(self, batch: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Take live events; returns the new ones, or None if there is a gap (R2)."""
        if not self.synced:
            return []
        if batch["prev"] > self.offset:
            self.synced = False
            return None
        fresh = [event for event in batch.get("events", ()) if event["offset"] > self.offset]
        for event in fresh:
            key = event.get("key")
            if key is None or "state" not in event:
                continue
            if event["state"] is None:
                self.states.pop(key, None)
            else:
                self.states[key] = event["state"]
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
