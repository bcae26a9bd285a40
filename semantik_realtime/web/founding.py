"""The founding wire: one JSON message an event, for browsers that were there first.

They believe every message, and come back only after a connection that ended
without a close frame (docs/protocol.md). So history never contradicts the
state that was told first, and an end is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.core.event import ENDS, Cursor, Event
from semantik_realtime.core.fold import ENDED, is_ahead
from semantik_realtime.core.topic import job_topic
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.channel import Outgoing, states_of

HISTORY = 100
MAX_FRAME_BYTES = 65_536

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def flatten(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as these clients want it: one level, with a status.

    >>> flatten({"status": "running", "progress": {"current": 1, "total": 4}, "fields": {"a": 0}})
    {'a': 0, 'status': 'running', 'progress': 25.0, 'current': 1, 'total': 4}

    An application may put anything into a state; what has another shape is
    passed on as it is.
    """
    fields, progress, error = (state.get(name) for name in ("fields", "progress", "error"))
    flat: dict[str, Any] = dict(fields) if isinstance(fields, Mapping) else {}
    flat["status"] = state.get("status") or "unknown"
    if isinstance(progress, Mapping):
        current, total = progress.get("current"), progress.get("total")
        flat["progress"] = _percent(current, total)
        flat["current"], flat["total"] = current, total
    elif progress is not None:
        flat["progress"] = progress
    for name in ("message", "attempt", "name"):
        if state.get(name) is not None:
            flat[name] = state[name]
    if isinstance(error, Mapping):
        flat["error"] = error.get("message") or error.get("type")
    elif error is not None:
        flat["error"] = error
    return flat


def _percent(current: Any, total: Any) -> float | None:
    if isinstance(current, int | float) and isinstance(total, int | float) and total > 0:
        return round(100 * current / total, 1)
    return None


class FoundingWire:
    """Messages of one connection that watches one job.

    Args:
        now: gives the time, as events have it.
        after: what the client has seen of the job before; its history goes on there.
    """

    name = "founding"

    def __init__(self, job: str, now: Callable[[], str], after: Cursor | None = None) -> None:
        self._job = job
        self._now = now
        self._after = after
        self._state: dict[str, Any] = {}
        self._flat: dict[str, Any] = {}
        self._provisional = False
        """Whether what was told last is not of the log."""

    def sync(
        self,
        topic: str,
        asked: Cursor | None,
        snapshot: Snapshot,
        recalled: Mapping[str, bytes] | None,
    ) -> list[str]:
        if self._flat and snapshot.cursor is None and recalled is None:
            # The log has expired under a page that still shows the job: nothing to add.
            return []
        states = states_of(snapshot) if recalled is None else recalled
        self._take(_decode(states[self._job]) if self._job in states else {})
        place = str(snapshot.cursor) if snapshot.cursor else None
        out = [self._message("current_state", self._now(), self._flat, topic, place)]
        shown = {
            name: self._flat[name]
            for name in ("status", "progress", "current", "total")
            if name in self._flat
        }
        for event in self._unseen(snapshot):
            head = event.head()
            # An end that is over: `current_state` has told it, or a newer attempt has begun.
            if not head.terminal:
                data = {**_decode(head.data), **shown}
                cursor = _place(snapshot.cursor, event)
                out.append(self._message(head.type, head.time, data, topic, cursor, replayed=True))
        return out

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        out = []
        for topic, outgoing in waiting:
            for event in outgoing.events:
                head = event.head()
                type = head.type
                if isinstance(head.state, msgspec.Raw) and head.key == self._job:
                    type = self._follow(head.type, _decode(head.state) or {})
                # The state wins: a total must not jump to what one event says of itself.
                data = {**_decode(head.data), **self._flat}
                cursor = _place(outgoing.cursor, event)
                out.append(self._message(type, head.time, data, topic, cursor))
        return out

    def denied(self, topic: str) -> list[str]:
        return []

    def gone(self, topic: str) -> list[str]:
        return [
            self._message("job_deleted", self._now(), {**self._flat, "status": "deleted"}, topic)
        ]

    # The old browsers know neither of the two types, and ignore them.

    def degraded(self, since: str) -> list[str]:
        return self._about_backend("degraded", {"degraded_since": since})

    def restored(self) -> list[str]:
        return self._about_backend("restored", {})

    def provisional(
        self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]
    ) -> list[str]:
        if self._job not in states:
            return []
        state = _decode(states[self._job])
        if self._flat and not is_ahead(state, self._state):
            # An end stands; and what says nothing new is not worth a message.
            has_ended = self._flat["status"] in ENDED
            if has_ended or state == self._state or is_ahead(self._state, state):
                return []
        self._take(state, provisional=True)
        return [self._message("current_state", self._now(), self._flat, topic, provisional=True)]

    def heartbeat(self, places: Mapping[str, Cursor]) -> list[str]:
        return ['{"type":"ping"}']

    def bye(self) -> list[str]:
        return []

    def answer(self, text: str | bytes) -> list[str]:
        """What to say to a client's message."""
        if len(text) > MAX_FRAME_BYTES:
            return [self._error("too big")]
        if text in ("ping", b"ping"):
            return [self._pong()]
        try:
            message = _decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return [self._error("expected JSON")]
        match message:
            case {"type": "ping"}:
                return [self._pong()]
            case {"type": "pong"}:
                return []
        return [self._error("only ping is understood")]

    def _follow(self, type: str, state: dict[str, Any]) -> str:
        """Take the state of a live event; returns the type to tell it by."""
        if not self._provisional:
            self._take(state)
        elif not is_ahead(self._state, state):
            was = self._flat["status"]
            self._take(state)
            if type in ENDS and self._flat["status"] == was:
                # The end was told while it was provisional, and is told once.
                return "current_state"
        return type

    def _take(self, state: dict[str, Any], *, provisional: bool = False) -> None:
        self._state, self._flat, self._provisional = state, flatten(state), provisional

    def _about_backend(self, type: str, data: Mapping[str, Any]) -> list[str]:
        # Nothing before the first status: these clients take it from any message.
        if not self._flat:
            return []
        topic = job_topic(self._job)
        return [self._message(type, self._now(), {**self._flat, **data}, topic)]

    def _unseen(self, snapshot: Snapshot) -> Sequence[Event]:
        events, after = snapshot.events, self._after
        if after is None or snapshot.cursor is None or after.epoch != snapshot.cursor.epoch:
            return events[-HISTORY:]
        if after.offset > snapshot.cursor.offset or any(
            event.offset == after.offset and event.chain != after.chain for event in events
        ):
            # The history was rewritten.
            return events[-HISTORY:]
        return [event for event in events if event.offset > after.offset]

    def _pong(self) -> str:
        return _encode({"type": "pong", "timestamp": self._now()}).decode()

    def _error(self, message: str) -> str:
        error = {"type": "error", "timestamp": self._now(), "data": {"message": message}}
        return _encode(error).decode()

    @staticmethod
    def _message(
        type: str,
        time: str,
        data: Mapping[str, Any],
        topic: str,
        cursor: str | None = None,
        *,
        replayed: bool = False,
        provisional: bool = False,
    ) -> str:
        message: dict[str, Any] = {
            "timestamp": time,
            "type": type,
            "data": data,
            "id": cursor,
            "topic": topic,
        }
        if replayed:
            message["replayed"] = True
        if provisional:
            message["provisional"] = True
        return _encode(message).decode()


def _place(log: Cursor | None, event: Event) -> str:
    return str(Cursor(log.epoch if log else "", event.offset, event.chain))
