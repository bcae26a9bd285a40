"""What a wire encodes: the answer to a subscription, and events that wait for a connection."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol

import msgspec

from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor, Event, Head
from semantik_realtime.core.limits import PIECE_BYTES
from semantik_realtime.core.readable import UNREADABLE_TYPE
from semantik_realtime.core.resume import Reason
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.wires.ends import statuses_of

logger = logging.getLogger(__name__)

unreadable: Counter[str] = Counter()
"""How many parts of events a wire could not read, by part, since the process began."""


def note_unreadable(part: str, topic: str) -> None:
    """Count a part of an event that has another shape than readers expect; log the first."""
    unreadable[part] += 1
    if unreadable[part] == 1:
        logger.warning("wire: unreadable %s left out topic=%s (logged once)", part, topic)


def is_readable(head: Head) -> bool:
    """Return False for a placeholder, and for an event that cannot be read."""
    return head.type not in ("", UNREADABLE_TYPE)


class Outgoing(msgspec.Struct, frozen=True):
    """The events that wait at one position, encoded once for every watcher there."""

    cursor: Cursor
    """The position after the events."""
    events: Sequence[Event]
    conflated: int
    """How many events were left out."""
    member: bytes
    """The topic's member of an ``events`` frame."""
    frame: str
    """A whole frame for a connection with no other events."""
    since: float | None
    """The time of the oldest event, in seconds since 1970; None: it has no readable time."""


def in_pieces(waiting: Sequence[tuple[str, Outgoing]]) -> Iterator[list[tuple[str, Outgoing]]]:
    """Yield the events that wait, by topic, in parts for a frame each, of about `PIECE_BYTES`."""
    part: list[tuple[str, Outgoing]] = []
    size = 0
    for topic, outgoing in waiting:
        if part and size + len(outgoing.member) > PIECE_BYTES:
            yield part
            part, size = [], 0
        part.append((topic, outgoing))
        size += len(outgoing.member)
    if part:
        yield part


class Sync:
    """The answer to one or more equal subscriptions: a replay, or a snapshot with its reason.

    Args:
        topic: the topic.
        asked: the client's cursor; None if it has none.
        snapshot: what the backend returned.
        recalled: the host's record, when the backend does not know the topic.
    """

    def __init__(
        self,
        topic: str,
        asked: Cursor | None,
        snapshot: Snapshot,
        recalled: Mapping[str, bytes] | None = None,
    ) -> None:
        self.topic = topic
        self.asked = asked
        self.snapshot = snapshot
        self.recalled = recalled
        self.encoded: dict[str, list[str]] = {}
        """Its frames on wires that have others than `frame`, by the name of the wire."""

    @cached_property
    def reason(self) -> Reason | None:
        """Why it is a snapshot; None: it is a replay."""
        if self.snapshot.cursor is None:
            if self.recalled is not None:
                return Reason.RECALLED
            return Reason.NEW if self.asked is None else Reason.EPOCH
        if self.snapshot.reason is None and self.asked is None:
            return Reason.NEW
        return self.snapshot.reason

    @cached_property
    def states(self) -> Mapping[str, bytes]:
        """The states as JSON, without the events around them."""
        if self.recalled is not None:
            return self.recalled
        return states_of(self.topic, self.snapshot)

    @cached_property
    def statuses(self) -> Mapping[str, dict[str, object]]:
        """The states without their other members, decoded once for a crowd of streams."""
        return statuses_of(self.states)

    @cached_property
    def frame(self) -> str:
        """The ``sync`` frame of the native wire, encoded once."""
        snapshot = self.snapshot
        if self.reason is None:
            assert self.asked is not None
            assert snapshot.cursor is not None
            return frames.replay_frame(self.topic, self.asked, snapshot.cursor, snapshot.events)
        return frames.snapshot_frame(
            self.topic, self.reason, snapshot.cursor, self.states, snapshot.events
        )

    def answers(
        self, asked: Cursor | None, snapshot: Snapshot, recalled: Mapping[str, bytes] | None
    ) -> bool:
        """Return True if this is the answer to that subscription too."""
        if self.snapshot is not snapshot or self.recalled is not recalled:
            return False
        # With a snapshot of the log the cursor of the client makes no difference.
        return self.asked == asked or (snapshot.cursor is not None and snapshot.reason is not None)


def states_of(topic: str, snapshot: Snapshot) -> dict[str, bytes]:
    """Return the states of a snapshot as JSON, without the events around them.

    An event that cannot be read is noted and left out.
    """
    states = {}
    for key, event in snapshot.states.items():
        head = Event(0, 0, event).head()
        if isinstance(head.state, msgspec.Raw):
            states[key] = bytes(head.state)
        else:
            note_unreadable("event", topic)
    return states


class Wire(Protocol):
    """How a server speaks to one connection. Pure: returns frames, sends nothing."""

    name: str

    def sync(self, sync: Sync) -> list[str]:
        """Answer a subscription."""

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        """Deliver the events that wait, by topic."""

    def denied(self, topic: str) -> list[str]:
        """Refuse a topic. An empty list: the connection ends."""

    def gone(self, topic: str) -> list[str]:
        """Report that the topic was deleted."""

    def degraded(self, since: str) -> list[str]:
        """Report that the backend has been away since ``since`` (RFC 3339)."""

    def restored(self) -> list[str]:
        """Report that the backend is back."""

    def provisional(
        self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]
    ) -> list[str]:
        """Deliver states, as JSON, that are known without the backend."""

    def heartbeat(self, places: Mapping[str, Cursor]) -> list[str]:
        """Prove that the connection lives, with the position in each topic."""

    def bye(self) -> list[str]:
        """Announce that the server stops."""
