"""Who follows a channel: the connection as the hub sees it, and its place in one channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.splice import NOWHERE
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.web.wires.wire import Outgoing, Sync


class Watcher(Protocol):
    """A connection, as the hub and its channels see it."""

    @property
    def user(self) -> str:
        """Who is connected."""

    @property
    def allowed(self) -> Mapping[str, str | None]:
        """The topics whose states it may get, each with its owner; None: not known."""

    @property
    def wire_name(self) -> str:
        """The name of its wire."""

    @property
    def subscriptions(self) -> int:
        """How many topics it follows."""

    @property
    def is_slow(self) -> bool:
        """Whether its client was seen to take what is written to it slowly."""

    @property
    def outbox_bytes(self) -> int:
        """About how many bytes wait to be sent to it, or are being sent."""

    def wake(self, subscription: Subscription) -> None:
        """Events or a snapshot wait: collect them."""

    def gone(self, subscription: Subscription) -> None:
        """The topic was deleted, and the subscription with it."""

    def tick(self, now: float) -> None:
        """Check deadlines. Called about once a second with the monotonic time."""

    def degraded(self, since: str) -> None:
        """The backend is away since ``since``: what is shown may be outdated."""

    def restored(self) -> None:
        """The backend is back, and every topic is up to date again."""

    def provisional(self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]) -> None:
        """Show ``states`` (JSON) of ``topic``, known without the backend, until it is restored."""

    def drain(self) -> None:
        """The server stops: end in a way that makes the client reconnect."""


class Source(Protocol):
    """A channel, as its subscriptions and their connections see it."""

    @property
    def topic(self) -> str:
        """The topic."""

    @property
    def cursor(self) -> Cursor:
        """The newest position."""

    def bytes_since(self, cursor: Cursor) -> int:
        """Return about how many bytes of events follow ``cursor``."""

    def outgoing(self, cursor: Cursor, *, is_slow: bool) -> Outgoing | None:
        """Return the next events that follow ``cursor``; None: the connection must end."""

    def answer(
        self,
        asked: Cursor | None,
        snapshot: Snapshot,
        recalled: Mapping[str, bytes] | None = None,
    ) -> Sync:
        """Return the answer to a subscription."""

    def leave(self, subscription: Subscription) -> None:
        """Remove a watcher."""


class Subscription:
    """The place of one connection in one channel."""

    __slots__ = ("_cursor", "_pending", "_permitted", "channel", "watcher")

    def __init__(self, watcher: Watcher, channel: Source, cursor: Cursor) -> None:
        self.watcher = watcher
        self.channel = channel
        # The position after what the connection has collected.
        self._cursor = cursor
        # A snapshot that the connection must get before any event.
        self._pending: Snapshot | None = None
        # The epoch that the connection may get; None: it must be authorized first.
        self._permitted: str | None = None

    @property
    def cursor(self) -> Cursor:
        """The position after what the connection has collected."""
        return self._cursor

    @property
    def pending(self) -> Snapshot | None:
        """The snapshot that the connection must get before any event."""
        return self._pending

    @property
    def epoch(self) -> str:
        """The epoch of what the connection gets next; empty: the topic is unknown."""
        cursor = self.channel.cursor if self._pending is None else self._pending.cursor
        return "" if cursor is None else cursor.epoch

    @property
    def is_permitted(self) -> bool:
        """Whether the connection may get what it gets next.

        Where the topic has become unknown, the last permission stands.
        """
        return self._permitted is not None and self.epoch in ("", self._permitted)

    def permit(self, epoch: str) -> None:
        """Note that the connection may watch the topic in ``epoch``."""
        self._permitted = epoch

    def restart(self, snapshot: Snapshot, cursor: Cursor | None = None) -> None:
        """Give the connection ``snapshot`` before any event; ``cursor`` replaces the client's.

        The connection must be authorized again first: the history is another
        one, and so may be the owner.
        """
        if snapshot.cursor is not None:
            self._permitted = None
        self._pending = snapshot
        self._cursor = cursor or self._cursor
        self.watcher.wake(self)

    def collect_pending(self) -> tuple[Cursor | None, Snapshot] | None:
        """Move to the pending snapshot, if there is one; return the cursor before, and it.

        A snapshot of a topic that the backend does not know stays pending until
        `settle`, because the host has to be asked for its record first.
        """
        snapshot = self._pending
        if snapshot is None:
            return None
        before = self._cursor if self._cursor.epoch else None
        self._cursor = snapshot.cursor or NOWHERE
        if snapshot.cursor is not None:
            self._pending = None
        return before, snapshot

    def settle(self, snapshot: Snapshot) -> bool:
        """Return True if ``snapshot`` was still pending: now it is not any more."""
        if self._pending is not snapshot:
            return False
        self._pending = None
        return True

    def collect_events(self, *, is_slow: bool) -> Outgoing | None:
        """Move past the next events that wait; None: the connection must end.

        Further ones wait if `cursor` is not that of the channel afterwards.
        """
        outgoing = self.channel.outgoing(self._cursor, is_slow=is_slow)
        if outgoing is not None and outgoing.events:
            self._cursor = outgoing.cursor
        return outgoing
