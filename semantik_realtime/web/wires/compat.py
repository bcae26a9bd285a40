"""The compatibility wire: one JSON message an event, for pages written for an older protocol.

These clients apply every message in order, report each message with the status
of a failure, and reconnect only after a connection that ended without a close
frame (docs/protocol.md). So an end that was sent is neither sent again nor
contradicted, by history or by a late message. Whatever a log holds, they get
the parts that can be read: an exception here would close the connection of
every watcher of the job, at each try.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import msgspec

from semantik_realtime.core.event import Cursor, Event, Head, StateChange
from semantik_realtime.core.fold import is_ahead
from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.core.limits import COMPAT_HISTORY, MAX_KEYS
from semantik_realtime.core.topic import split_topic
from semantik_realtime.core.words import DELETED, IMPLIED_STATUS, LIFE_TYPES, Words
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.wires.messages import encode_message, flatten, read_members
from semantik_realtime.web.wires.wire import Outgoing, Sync, is_readable, note_unreadable

_SHOWN = ("status", "progress", "current", "total", "job_id")
"""The members of the state that messages of history repeat."""


class _Shown(msgspec.Struct):
    """The last state of a job that the client knows."""

    state: dict[str, Any]
    """With the protocol's status."""
    flat: dict[str, Any]
    """With the application's status."""
    provisional: bool = False
    """Whether it does not come from the log."""

    @property
    def status(self) -> Any:
        return self.state.get("status")

    @property
    def ended(self) -> bool:
        return has_ended(self.state) or self.status == DELETED


class CompatWire:
    """Messages of one connection that watches one topic.

    On a job's topic every message is about that job. On any other topic, a
    feed, each message is about the job that is its event's key and names it in
    ``data.job_id``; an event without a state is sent there as it is.

    Args:
        topic: the topic.
        now: returns the time, as events have it.
        after: the last event that the client has seen; its history continues there.
        words: the application's words, in which types and statuses are shown.
        history: how many of the newest events a new page gets; 0: no page gets any.
    """

    name = "compat"

    def __init__(
        self,
        topic: str,
        now: Callable[[], str],
        after: Cursor | None = None,
        *,
        words: Words | None = None,
        history: int = COMPAT_HISTORY,
    ) -> None:
        kind, ident = split_topic(topic)
        self._topic = topic
        self._job = ident if kind == "job" else None
        self._now = now
        self._words = words or Words()
        self._history = history
        # The position up to which the client has seen the log; None: it is a new page.
        self._after = after
        # The jobs about which the client got `degraded`, until it gets `restored`.
        self._degraded: set[str] = set()
        # The id of the last message that has one.
        self._last_id: str | None = None
        # What the client knows of each job, the one that changed last at the end. At most
        # `MAX_KEYS`, as a topic has.
        self._shown: dict[str, _Shown] = {}

    def sync(self, sync: Sync) -> list[str]:
        snapshot = sync.snapshot
        if self._shown and snapshot.cursor is None and sync.recalled is None:
            # The log has expired: the page keeps what it shows.
            return []
        seen = self._seen(snapshot)
        place = self._resume_place(snapshot, seen)
        chains = {event.offset: event.chain for event in snapshot.events}
        out: list[str] = []
        # Sent in the order of the log, so that each id is a position to resume from.
        later: list[tuple[float, str]] = []
        for job in sync.states if self._job is None else (self._job,):
            state = self._read_state(sync.states[job]) if job in sync.states else None
            was = self._shown.get(job)
            if was is not None and (state is None or _is_known(was, state)):
                continue
            state = state or {}
            offset = inf if sync.recalled is not None else _offset_of(snapshot, job)
            shown = self._show(job, state)
            if was is None and has_ended(state) and not self._is_new_end(offset, seen):
                continue
            if self._job is None and has_ended(state) and offset < inf:
                at = _place(snapshot.cursor, int(offset), chains.get(int(offset), 0))
                later.append((offset, self._state_message(shown, at)))
            else:
                out.append(self._state_message(shown, place))
        for event in self._unseen(snapshot, seen):
            head = event.head()
            if not is_readable(head):
                note_unreadable("event", self._topic)
                continue
            at = _place(snapshot.cursor, event.offset, event.chain)
            deleted = seen is not None and head.key not in sync.states
            later += [(event.offset, text) for text in self._replayed(head, at, deleted)]
        out += [text for _, text in sorted(later, key=lambda one: one[0])]
        return out if snapshot.cursor is None else self._arrive(out, snapshot.cursor)

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        out: list[str] = []
        for _, outgoing in waiting:
            for event in outgoing.events:
                head = event.head()
                if not is_readable(head):
                    note_unreadable("event", self._topic)
                else:
                    out += self._live(head, _place(outgoing.cursor, event.offset, event.chain))
            self._arrive(out, outgoing.cursor)
        return out

    def denied(self, topic: str) -> list[str]:
        return []

    def gone(self, topic: str) -> list[str]:
        out: list[str] = []
        for job in list(self._shown) if self._job is None else [self._job]:
            out += self._deleted(job, self._now())
        return out

    def degraded(self, since: str) -> list[str]:
        # Nothing before the first status, for these clients read one from any message, and
        # nothing that would report an end again.
        known = {job: one.flat for job, one in self._shown.items() if not one.ended}
        self._degraded = set(known)
        data = [{**flat, "degraded_since": since} for flat in known.values()]
        return [self._message("degraded", self._now(), one) for one in data]

    def restored(self) -> list[str]:
        out = []
        for job, shown in self._shown.items():
            if not shown.ended or shown.provisional or job in self._degraded:
                data = self._named(job, {}) if shown.ended else shown.flat
                out.append(self._message("restored", self._now(), data))
        self._degraded = set()
        return out

    def provisional(
        self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]
    ) -> list[str]:
        out = []
        for job in states if self._job is None else states.keys() & {self._job}:
            state, shown = self._read_state(states[job]), self._shown.get(job)
            if state is None:
                continue
            if shown is None:
                # A feed does not begin with the ends of earlier jobs.
                if self._job is None and has_ended(state):
                    continue
            elif not is_ahead(state, shown.state):
                # An end stays, and a state that is not new needs no message.
                if shown.ended or state == shown.state or is_ahead(shown.state, state):
                    continue
            shown = self._show(job, state, provisional=True)
            out.append(self._state_message(shown, None, provisional=True))
        return out

    def heartbeat(self, places: Mapping[str, Cursor]) -> list[str]:
        return ['{"type":"ping"}']

    def bye(self) -> list[str]:
        return []

    def _arrive(self, out: list[str], cursor: Cursor) -> list[str]:
        """Move to a position, and append it to ``out`` if the last message has an earlier one.

        So a client that resumes does not get an end again that was left out as known.
        """
        self._after = cursor
        if self._last_id != str(cursor):
            out.append(self._message("position", self._now(), {}, str(cursor)))
        return out

    # A snapshot.

    def _seen(self, snapshot: Snapshot) -> int | None:
        """Return the offset up to which the client has seen this log; None: it is a new page."""
        after, cursor = self._after, snapshot.cursor
        if after is None or cursor is None:
            return None
        if after.epoch != cursor.epoch or after.offset > cursor.offset:
            return 0
        # The position of an event that was no longer kept has no chain.
        if after.chain and any(
            event.offset == after.offset and event.chain != after.chain for event in snapshot.events
        ):
            return 0
        return after.offset

    def _resume_place(self, snapshot: Snapshot, seen: int | None) -> str | None:
        """Return the id of the states that come first."""
        if snapshot.cursor is None:
            return None
        if self._job is not None or seen is None:
            return str(snapshot.cursor)
        # Ends follow on a feed, and a client that misses them must get them when it resumes.
        chain = self._after.chain if seen and self._after else 0
        return str(Cursor(snapshot.cursor.epoch, seen, chain))

    def _is_new_end(self, offset: float, seen: int | None) -> bool:
        """Return False for an end that the client knows, or that is older than a feed's page."""
        if self._job is not None:
            return seen is None or offset > seen
        return seen is not None and seen < offset < inf

    def _unseen(self, snapshot: Snapshot, seen: int | None) -> Sequence[Event]:
        if not seen:
            return snapshot.events[-self._history :] if self._history else ()
        return [event for event in snapshot.events if event.offset > seen]

    def _replayed(self, head: Head, cursor: str, may_be_deleted: bool) -> list[str]:
        """Return the message of an event of history, if it has one.

        An end and each change of the status are in the states that came before.
        """
        job = self._job or head.key
        if self._job is None and head.change is StateChange.DROP:
            return self._deleted(job, head.time, cursor, replayed=True) if may_be_deleted else []
        shown, type = self._shown.get(job), self._words.type_of(head.type)
        if not self._history or head.terminal or type in IMPLIED_STATUS:
            return []
        if shown is None:
            if head.change is not StateChange.KEEP:
                return []
        elif shown.ended or (type == "job_progress" and shown.status != "running"):
            return []
        data = self._data(head)
        if shown is not None:
            data |= {name: shown.flat[name] for name in _SHOWN if name in shown.flat}
        return [self._message(type, head.time, data, cursor, replayed=True)]

    # Live events.

    def _live(self, head: Head, cursor: str) -> list[str]:
        job, type = self._job or head.key, self._words.type_of(head.type)
        is_own = head.key == job
        if head.change is StateChange.DROP and is_own:
            return self._deleted(job, head.time, cursor)
        was = self._shown.get(job)
        is_news = False
        if isinstance(head.state, msgspec.Raw) and is_own:
            is_news = self._follow(job, was, self._state(was, type, head.state))
        shown = self._shown.get(job)
        data = self._data(head)
        if shown is None:
            return [self._message(type, head.time, data, cursor)]
        if shown.ended and not is_news:
            if type in LIFE_TYPES:
                return []
            # An event of the application, which must neither repeat the end nor contradict it.
            data.pop("status", None)
            return [self._message(type, head.time, self._named(job, data), cursor)]
        if IMPLIED_STATUS.get(type, shown.status) != shown.status or (
            type == "job_progress" and shown.ended
        ):
            # The type of a child, for example, which would pass for the job's own.
            type = "current_state"
        # The state wins: a total must not jump to the one in an event's data.
        return [self._message(type, head.time, data | shown.flat, cursor)]

    def _follow(self, job: str, was: _Shown | None, state: dict[str, Any]) -> bool:
        """Show the state of a live event. Return False if it repeats an end, or is behind it."""
        if was is not None and was.provisional and is_ahead(was.state, state):
            return not was.ended
        if was is not None and _is_same_end(was, state):
            return False
        self._show(job, state)
        return True

    def _state(self, was: _Shown | None, type: str, encoded: msgspec.Raw) -> dict[str, Any]:
        """Return the state of an event. If it cannot be read: the last one, and the type's status.

        So an end is an end whatever its state is.
        """
        state = self._read_state(encoded)
        if state is not None:
            return state
        state = dict(was.state) if was else {}
        if type in IMPLIED_STATUS:
            state["status"] = IMPLIED_STATUS[type]
        return state

    def _data(self, head: Head) -> dict[str, Any]:
        return read_members("data", head.data, self._topic) or {}

    def _deleted(
        self, job: str, time: str, cursor: str | None = None, *, replayed: bool = False
    ) -> list[str]:
        was = self._shown.pop(job, None)
        if was is not None and was.status == DELETED:
            self._shown[job] = was
            return []
        flat = {**(was.flat if was else self._named(job, {})), "status": self._words.shown(DELETED)}
        if self._job is not None:
            self._shown[job] = _Shown({"status": DELETED}, flat)
        return [self._message("job_deleted", time, flat, cursor, replayed=replayed)]

    # What the client knows.

    def _show(self, job: str, state: dict[str, Any], *, provisional: bool = False) -> _Shown:
        flat = self._named(job, flatten(state))
        flat["status"] = self._words.shown(flat["status"])
        self._shown.pop(job, None)
        shown = self._shown[job] = _Shown(state, flat, provisional)
        if len(self._shown) > MAX_KEYS:
            del self._shown[next(iter(self._shown))]
        return shown

    def _named(self, job: str, flat: dict[str, Any]) -> dict[str, Any]:
        return flat if self._job is not None else {**flat, "job_id": job}

    def _read_state(self, encoded: bytes | msgspec.Raw) -> dict[str, Any] | None:
        state = read_members("state", encoded, self._topic)
        return None if state is None else dict(self._words.translate(state))

    # Messages.

    def _state_message(
        self, shown: _Shown, cursor: str | None, *, provisional: bool = False
    ) -> str:
        return self._message(
            "current_state", self._now(), shown.flat, cursor, provisional=provisional
        )

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
            "type": self._words.shown(type),
            "data": data,
            "id": cursor,
            "topic": self._topic,
        }
        self._last_id = cursor or self._last_id
        if replayed:
            message["replayed"] = True
        if provisional:
            message["provisional"] = True
        return encode_message(message, self._topic)


def _place(log: Cursor | None, offset: int, chain: int) -> str:
    return str(Cursor(log.epoch if log else "", offset, chain))


def _is_known(was: _Shown, state: Mapping[str, Any]) -> bool:
    """Return True if the client knows this end, or a provisional one that the log is behind."""
    return _is_same_end(was, state) or (
        was.ended and was.provisional and is_ahead(was.state, state)
    )


def _is_same_end(was: _Shown, state: Mapping[str, Any]) -> bool:
    # Of two ends, the one of a later attempt is ahead.
    return was.ended and was.status == state.get("status") and not is_ahead(state, was.state)


def _offset_of(snapshot: Snapshot, job: str) -> float:
    """Return where the state of a job is in the log; 0 if that is unknown."""
    event = snapshot.states.get(job)
    return 0 if event is None else Event(0, 0, event).head().offset
