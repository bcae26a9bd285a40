"""The counts of a web process, as plain numbers: counting is on the hot path."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from semantik_realtime.core.resume import Reason
from semantik_realtime.core.session import CloseCode
from semantik_realtime.core.splice import ResyncReason

if TYPE_CHECKING:
    from semantik_realtime.web.wires.wire import Outgoing

LAG_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the buckets, in seconds; the last bucket has none."""
CLOSE_REASONS = tuple(code.name.lower() for code in CloseCode)


class Lag(msgspec.Struct):
    """A histogram of seconds.

    >>> lag = Lag()
    >>> lag.observe(0.007)
    >>> lag.buckets[:3], lag.sum
    ([0, 1, 0], 0.007)
    """

    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(LAG_BOUNDS) + 1))
    """How many fell into each bucket, not cumulated."""
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count ``seconds``. A negative value, from clocks that disagree, counts as zero."""
        self.buckets[bisect_left(LAG_BOUNDS, seconds)] += 1
        if seconds > 0:
            self.sum += seconds


def _zeros(*names: str) -> dict[str, int]:
    # A reason that never occurred is exported as zero: Prometheus sees no increase without a
    # first value.
    return msgspec.field(default_factory=lambda: dict.fromkeys(names, 0))


class HubStats(msgspec.Struct):
    """Counts since the process began."""

    received: int = 0
    """Events that the backend delivered."""
    delivered: int = 0
    """Events written to connections, counted for each connection; those in syncs excluded."""
    conflated: int = 0
    """Events that were left out of what was written to slow connections, counted for each."""
    lag: Lag = msgspec.field(default_factory=Lag)
    """From the time of the oldest event of a written batch to the end of the write."""
    waiting: int = 0
    """Subscriptions that wait for an owner who may watch, now."""
    denied: dict[str, int] = _zeros("waited", "crowded", "rechecked")
    """Refused subscriptions: after the wait, at once because too many waited, or later, by a new
    credential or a new owner."""
    syncs: dict[str, int] = _zeros("replay", *Reason)
    """Answers to subscriptions: replays, and snapshots by reason."""
    resyncs: dict[str, int] = _zeros(*ResyncReason)
    """Topics read again, by reason."""
    refused: dict[str, int] = _zeros("origin", *CLOSE_REASONS)
    """Connections that were refused, by reason."""
    closed: dict[str, int] = _zeros("client", *CLOSE_REASONS)
    """Connections that have ended, by reason."""

    busy: dict[str, int] = _zeros("user", "server")
    """HTTP requests that were refused because there were too many, by whose they were."""

    def count_sync(self, reason: Reason | None) -> None:
        """Count an answer to a subscription; None: a replay."""
        self.syncs[reason or "replay"] += 1

    def count_denied(self, reason: str) -> None:
        """Count a subscription that was refused."""
        self.denied[reason] += 1

    def count_busy(self, by: str) -> None:
        """Count an HTTP request that was refused because ``by`` had too many."""
        self.busy[by] += 1

    def count_resync(self, reason: ResyncReason) -> None:
        """Count a topic that is read again."""
        self.resyncs[reason] += 1

    def count_refused(self, reason: str) -> None:
        """Count a connection that was refused."""
        self.refused[reason] += 1

    def count_closed(self, reason: str) -> None:
        """Count a connection that has ended."""
        self.closed[reason] += 1

    def count_written(self, batches: Sequence[Outgoing], now: float) -> None:
        """Count ``batches`` that were written to a connection at ``now`` (seconds since 1970)."""
        for batch in batches:
            self.delivered += len(batch.events)
            self.conflated += batch.conflated
            if batch.since is not None:
                self.lag.observe(now - batch.since)
