"""From events to states, and the rules of a reader (R1 to R6 and R8 of docs/protocol.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from semantik_realtime.core.event import Head, StateChange
from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.core.resume import Reason
from semantik_realtime.core.shown import ShownEvents

CONFLATED = "conflated"
"""The reason of a `Gap` that the server left because this client was slow."""
_OTHER_LOG = {Reason.EPOCH, Reason.DIVERGED, Reason.AHEAD, Reason.RECALLED}
"""Reasons of a snapshot of another log than that of the client's cursor."""


def fold(states: dict[str, msgspec.Raw], heads: Iterable[Head]) -> None:
    """Apply events to ``states``, in place: the last state of each key wins (R1).

    >>> states = {}
    >>> fold(states, [Head(key="a", state=msgspec.Raw(b'{"n":1}'))])
    >>> bytes(states["a"])
    b'{"n":1}'
    >>> fold(states, [Head(key="a", state=msgspec.Raw(b"null"))])
    >>> states
    {}
    """
    for head in heads:
        if not head.key or head.state is msgspec.UNSET:
            continue
        if head.change is StateChange.DROP:
            states.pop(head.key, None)
        else:
            states[head.key] = head.state


def is_ahead(state: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return True if one state of a job is later than another (R6).

    A newer attempt is later, then an end, then more progress. Members that are
    missing or of another type do not count, nor does a state that is no object.

    >>> is_ahead({"attempt": 2}, {"attempt": 1, "status": "completed"})
    True
    >>> is_ahead({"status": "lost"}, {"attempt": 1, "status": "running"})
    True
    >>> is_ahead({"progress": {"current": 3}}, {"progress": {"current": 3}})
    False
    """
    attempt, other_attempt = _number(_member(state, "attempt")), _number(_member(other, "attempt"))
    if attempt < other_attempt or attempt > other_attempt:
        return attempt > other_attempt
    if has_ended(state) or has_ended(other):
        return not has_ended(other)
    return _current(state) > _current(other)


class Gap(msgspec.Struct, frozen=True):
    """Events that are in the states, and were not passed on one by one."""

    reason: str
    """`CONFLATED`, or the reason of the snapshot that came in their place."""
    events: int | None
    """How many they are; None: not known, because the log is another one. Where offsets are not
    dense there may be fewer."""


class View:
    """The states and the position of one topic at a reader of the wire.

    The frames are decoded to dicts. ``reader.js`` is the same for browsers;
    both are tested with ``tests/vectors/reader.json`` and ``overlay.json``.
    After a gap the caller subscribes again with ``cursor``; until the ``sync``
    live events are ignored.

    >>> view = View("job:1")
    >>> sync = {"mode": "snapshot", "offset": 4, "cursor": "e.4.00000000", "states": {}}
    >>> view.sync(sync)
    []
    >>> event = {"offset": 5, "key": "1", "state": {"status": "running"}}
    >>> batch = {"prev": 4, "offset": 5, "cursor": "e.5.00000001", "events": [event]}
    >>> view.batch(batch) == [event], view.states
    (True, {'1': {'status': 'running'}})
    >>> view.batch({**batch, "prev": 7, "offset": 8, "events": []}) is None
    True
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.folded: dict[str, Any] = {}
        """The states at ``cursor``."""
        self.overlay: dict[str, Any] = {}
        """Provisional states, shown in place of the folded ones."""
        self.offset = 0
        """The offset of the newest event that was applied."""
        self.cursor: str | None = None
        """The position to subscribe from; None before the first ``sync``."""
        self.reason: str | None = None
        """Why the last snapshot was sent."""
        self.synced = False
        """Whether live events are applied: from a ``sync`` to a gap, or to `interrupt`."""
        self.conflated = 0
        """How many events the server has left out because this client was slow."""
        self.gap: Gap | None = None
        """What the last `sync` or `batch` did not return one by one; None: nothing."""
        # The events that were returned to be shown.
        self._shown = ShownEvents()

    @property
    def states(self) -> Mapping[str, Any]:
        """The states to show: the folded ones, each replaced by the overlay where it has one."""
        return {**self.folded, **self.overlay} if self.overlay else self.folded

    def sync(self, frame: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Apply a ``sync``. Return the events to show, or None if it leaves a gap (R2, R3).

        For a snapshot they are the events of its history that were not shown
        before; these are not folded, because its states include them.
        """
        if frame["mode"] == "replay":
            self.synced = True
            events = self.batch(frame)
            self.restored()
            return events
        if frame["mode"] != "snapshot":
            return []
        history, reason = frame.get("events") or [], frame.get("reason")
        is_rewritten = reason in _OTHER_LOG
        self.gap = self._gap_before(frame, is_rewritten)
        self.folded = dict(frame.get("states") or {})
        self.offset = int(frame["offset"])
        self.cursor = frame.get("cursor")
        self.reason = reason
        self.synced = True
        self.restored()
        return self._shown.add_history(history, is_rewritten=is_rewritten)

    def batch(self, batch: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Apply live events. Return the new ones, or None if the topic must be subscribed again:
        there is a gap, or they are of another history (R2).
        """
        self.gap = None
        if not self.synced:
            return []
        if batch["prev"] > self.offset or self._is_of_other_history(batch):
            self.synced = False
            return None
        if batch["offset"] <= self.offset:
            return []
        fresh = [event for event in batch.get("events", ()) if event["offset"] > self.offset]
        changed = {e["key"]: e["state"] for e in fresh if "key" in e and "state" in e}
        for key, state in changed.items():
            if state is None:
                self.folded.pop(key, None)
            else:
                self.folded[key] = state
        self._lift(self.overlay.keys() & changed.keys())
        self.offset = int(batch["offset"])
        self.cursor = batch["cursor"]
        if conflated := int(batch.get("conflated", 0)):
            self.conflated += conflated
            self.gap = Gap(CONFLATED, conflated)
        return self._shown.add_batch(fresh)

    def behind(self, top: Mapping[str, Any]) -> bool:
        """Return True if a topic's member of ``tops`` shows that events are missing, or that the
        position is in another history: subscribe again (R4).
        """
        is_other = self.synced and top["offset"] == self.offset and top["cursor"] != self.cursor
        if top["offset"] <= self.offset and not is_other:
            return False
        self.synced = False
        return True

    def interrupt(self) -> None:
        """Apply no event until the next ``sync``: the connection has ended."""
        self.synced = False

    def provisional(self, states: Mapping[str, Any]) -> bool:
        """Add provisional states to the overlay. Return True if it accepts any of them (R6).

        Only the overlay changes, and no key goes back to an earlier state.
        """
        accepted = {key: state for key, state in states.items() if self._accepts(key, state)}
        self.overlay.update(accepted)
        return bool(accepted)

    def restored(self) -> None:
        """The backend is back: drop the overlay of each key in which the log has caught up (R6).

        Until the next ``sync`` it stays whole.
        """
        if self.synced:
            self._lift(set(self.overlay))

    def _accepts(self, key: str, state: Mapping[str, Any]) -> bool:
        shown = self.overlay.get(key, self.folded.get(key))
        if shown is None or is_ahead(state, shown):
            return True
        return not (is_ahead(shown, state) or has_ended(shown))

    def _lift(self, keys: Iterable[str]) -> None:
        for key in keys:
            folded = self.folded.get(key)
            if folded is None or has_ended(folded) or not is_ahead(self.overlay[key], folded):
                del self.overlay[key]

    def _is_of_other_history(self, batch: Mapping[str, Any]) -> bool:
        prev_cursor = batch.get("prev_cursor")
        if prev_cursor is None or self.cursor is None:
            return False
        return self.cursor not in (prev_cursor, batch["cursor"])

    def _gap_before(self, snapshot: Mapping[str, Any], is_rewritten: bool) -> Gap | None:
        if self.cursor is None:
            return None
        if is_rewritten:
            return Gap(snapshot["reason"], None)
        arrived = sum(event["offset"] > self.offset for event in snapshot.get("events") or ())
        missing = int(snapshot["offset"]) - self.offset - arrived
        return Gap(snapshot["reason"], missing) if missing > 0 else None


def _current(state: Mapping[str, Any]) -> float:
    return _number(_member(_member(state, "progress"), "current"))


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else None


def _number(value: object) -> float:
    # Every other value is NaN, which is neither higher nor lower than any number. A boolean is
    # no number in JSON, though it is one in Python.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return math.nan
