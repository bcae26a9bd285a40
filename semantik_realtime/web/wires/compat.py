"""The compatibility wire: one JSON message an event, for pages written for an older protocol.

These clients apply every message, and reconnect only after a connection that
ended without a close frame (docs/protocol.md). So history never contradicts the
state that was sent first, and an end is sent once. Whatever a log holds, they
get the parts that can be read: an exception here would close the connection of
every watcher of the job, at each try.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from semantik_realtime.core.event import Cursor, Event, Head, StateChange
from semantik_realtime.core.fold import is_ahead
from semantik_realtime.core.lifecycle import END_TYPES, STATUS_OF_TYPE, has_ended
from semantik_realtime.core.limits import MAX_FRAME_BYTES
from semantik_realtime.core.topic import split_topic
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.wires.wire import Outgoing, Sync, note_unreadable

HISTORY = 100
"""Events of history that a client gets after the state."""
_SHOWN = ("status", "progress", "current", "total", "job_id")
"""The members of the state that messages of history repeat."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def read_members(part: str, encoded: bytes | msgspec.Raw, topic: str) -> dict[str, Any] | None:
    """Return a state or the data of an event; None, and noted, if it is no JSON object.

    ``null`` has no members.
    """
    try:
        members = _decode(encoded)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        members = ()
    if members is None or isinstance(members, dict):
        return members or {}
    note_unreadable(part, topic)
    return None


def flatten(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state as these clients expect it: one level, with a status.

    >>> flatten({"status": "running", "progress": {"current": 1, "total": 4}, "fields": {"a": 0}})
    {'a': 0, 'status': 'running', 'progress': 25.0, 'current': 1, 'total': 4}

    An application may put anything into a state; members of another shape are
    passed on unchanged.
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
        # JSON's integers have no bound, and those of a float have one.
        with contextlib.suppress(OverflowError):
            return round(100 * current / total, 1)
    return None


class _Shown(msgspec.Struct):
    """The last state of a job that was sent to the client."""

    state: dict[str, Any]
    flat: dict[str, Any]
    provisional: bool
    """Whether it does not come from the log."""


class CompatWire:
    """Messages of one connection that watches one topic.

    On a job's topic every message is about that job. On any other topic, a
    feed, each message is about the job that is its event's key and names it in
    ``data.job_id``; an event without a state is sent there as it is.

    Args:
        topic: the topic.
        now: returns the time, as events have it.
        after: the last event that the client has seen; its history continues there.
    """

    name = "compat"

    def __init__(self, topic: str, now: Callable[[], str], after: Cursor | None = None) -> None:
        kind, ident = split_topic(topic)
        self._topic = topic
        self._job = ident if kind == "job" else None
        self._now = now
        self._after = after
        # The last state that was sent of each job.
        self._shown: dict[str, _Shown] = {}

    def sync(self, sync: Sync) -> list[str]:
        snapshot, states = sync.snapshot, sync.states
        if self._shown and snapshot.cursor is None and sync.recalled is None:
            # The log has expired while a page shows it: the page keeps what it shows.
            return []
        place = str(snapshot.cursor) if snapshot.cursor else None
        self._shown.clear()
        out = []
        for job in states if self._job is None else (self._job,):
            state = read_members("state", states[job], self._topic) if job in states else None
            shown = self._show(job, state or {})
            out.append(self._message("current_state", self._now(), shown.flat, place))
        for event in self._unseen(snapshot):
            out += self._replayed(event, _place(snapshot.cursor, event))
        return out

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        out = []
        for _, outgoing in waiting:
            for event in outgoing.events:
                head = event.head()
                if not head.type:
                    note_unreadable("event", self._topic)
                    continue
                cursor = _place(outgoing.cursor, event)
                job = self._job or head.key
                if head.change is StateChange.DROP and self._job is None:
                    out.append(self._deleted(job, head.time, cursor))
                    continue
                type = head.type
                if isinstance(head.state, msgspec.Raw) and head.key == job:
                    type = self._follow(job, head.type, self._state(job, head.type, head.state))
                shown = self._shown.get(job)
                # The state wins: a total must not jump to the one in an event's data.
                data = self._data(head) | (shown.flat if shown else {})
                out.append(self._message(type, head.time, data, cursor))
        return out

    def denied(self, topic: str) -> list[str]:
        return []

    def gone(self, topic: str) -> list[str]:
        jobs = list(self._shown) if self._job is None else [self._job]
        return [self._deleted(job, self._now()) for job in jobs]

    # Older pages ignore these two types.

    def degraded(self, since: str) -> list[str]:
        return self._about_backend("degraded", {"degraded_since": since})

    def restored(self) -> list[str]:
        return self._about_backend("restored", {})

    def provisional(
        self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]
    ) -> list[str]:
        out = []
        for job in states if self._job is None else states.keys() & {self._job}:
            state, shown = read_members("state", states[job], topic), self._shown.get(job)
            if state is None:
                continue
            if shown is not None and not is_ahead(state, shown.state):
                # An end stays, and a state that is not new needs no message.
                if has_ended(shown.flat) or state == shown.state or is_ahead(shown.state, state):
                    continue
            flat = self._show(job, state, provisional=True).flat
            out.append(self._message("current_state", self._now(), flat, provisional=True))
        return out

    def heartbeat(self, places: Mapping[str, Cursor]) -> list[str]:
        return ['{"type":"ping"}']

    def bye(self) -> list[str]:
        return []

    def answer(self, text: str | bytes) -> list[str]:
        """Answer a client's message."""
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

    def _replayed(self, event: Event, cursor: str) -> list[str]:
        head = event.head()
        if not head.type:
            note_unreadable("event", self._topic)
            return []
        shown = self._shown.get(self._job or head.key)
        if shown is None and head.change is StateChange.DROP and self._after is not None:
            # A client that was connected before may still show it.
            return [self._deleted(head.key, head.time, cursor, replayed=True)]
        # `current_state` has reported the end, or a newer attempt has begun since.
        if head.terminal or (shown is None and head.change is not StateChange.KEEP):
            return []
        data = self._data(head)
        if shown is not None:
            data |= {name: shown.flat[name] for name in _SHOWN if name in shown.flat}
        return [self._message(head.type, head.time, data, cursor, replayed=True)]

    def _state(self, job: str, type: str, encoded: msgspec.Raw) -> dict[str, Any]:
        """Return the state of an event. If it cannot be read: the last one, and the type's status.

        So an end is an end whatever its state is.
        """
        state = read_members("state", encoded, self._topic)
        if state is not None:
            return state
        shown = self._shown.get(job)
        state = dict(shown.state) if shown else {}
        if type in STATUS_OF_TYPE:
            state["status"] = STATUS_OF_TYPE[type]
        return state

    def _data(self, head: Head) -> dict[str, Any]:
        return read_members("data", head.data, self._topic) or {}

    def _deleted(
        self, job: str, time: str, cursor: str | None = None, *, replayed: bool = False
    ) -> str:
        shown = self._shown.pop(job, None) or _Shown({}, self._named(job, {}), False)
        data = {**shown.flat, "status": "deleted"}
        return self._message("job_deleted", time, data, cursor, replayed=replayed)

    def _follow(self, job: str, type: str, state: dict[str, Any]) -> str:
        """Show the state of a live event; return the type to send it with."""
        was = self._shown.get(job)
        if was is None or not was.provisional:
            self._show(job, state)
        elif not is_ahead(was.state, state):
            shown = self._show(job, state)
            if type in END_TYPES and shown.flat["status"] == was.flat["status"]:
                # The end was sent while it was provisional, and is sent once.
                return "current_state"
        return type

    def _show(self, job: str, state: dict[str, Any], *, provisional: bool = False) -> _Shown:
        shown = _Shown(state, self._named(job, flatten(state)), provisional)
        self._shown[job] = shown
        return shown

    def _named(self, job: str, flat: dict[str, Any]) -> dict[str, Any]:
        return flat if self._job is not None else {**flat, "job_id": job}

    def _about_backend(self, type: str, data: Mapping[str, Any]) -> list[str]:
        # Nothing before the first status: these clients read one from any message.
        return [
            self._message(type, self._now(), {**shown.flat, **data})
            for shown in self._shown.values()
        ]

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

    def _message(
        self,
        type: str,
        time: str,
        data: Mapping[str, Any],
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
            "topic": self._topic,
        }
        if replayed:
            message["replayed"] = True
        if provisional:
            message["provisional"] = True
        try:
            return _encode(message).decode()
        except RecursionError:
            # One level deeper here than in the event.
            note_unreadable("data", self._topic)
            message["data"] = {n: v for n, v in data.items() if not isinstance(v, dict | list)}
            return _encode(message).decode()


def _place(log: Cursor | None, event: Event) -> str:
    return str(Cursor(log.epoch if log else "", event.offset, event.chain))
