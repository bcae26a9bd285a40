"""What a web process counts of itself: plain numbers, so that counting costs next to nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from semantik_realtime.core.resume import Reason
from semantik_realtime.core.session import CloseCode

if TYPE_CHECKING:
    from semantik_realtime.web.hub.channel import Outgoing

LAG_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds in seconds of all buckets but the last, which has none."""
RESYNC_REASONS = ("gap", "interrupted", "tail", "ahead", "outage")
CLOSE_REASONS = tuple(code.name.lower() for code in CloseCode)


class Lag(msgspec.Struct):
    """A histogram of seconds.

    >>> lag = Lag()
    >>> lag.observe(0.007)
    >>> lag.buckets[:3], lag.sum
    ([0, 1, 0], 0.007)
    """

    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(LAG_BOUNDS) + 1))
    """How many fell into each bucket alone."""
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count ``seconds``; what clocks that disagree make negative counts as none."""
        self.buckets[bisect_left(LAG_BOUNDS, seconds)] += 1
        if seconds > 0:
            self.sum += seconds


def _zeros(*names: str) -> dict[str, int]:
    # A reason that never came is told as zero: without a first value there is no increase.
    return msgspec.field(default_factory=lambda: dict.fromkeys(names, 0))


class HubStats(msgspec.Struct):
    """Counts since the process began."""

    received: int = 0
    """Events that the backend's feed brought."""
    delivered: int = 0
    """Events written to connections, each as often as it was written; syncs left out."""
    lag: Lag = msgspec.field(default_factory=Lag)
    """From the time of the oldest event of a written batch to the end of the write."""
    syncs: dict[str, int] = _zeros("replay", *Reason)
    """Answers to subscriptions: replays, and snapshots by reason."""
    resyncs: dict[str, int] = _zeros(*RESYNC_REASONS)
    """Topics read again, by what made it necessary."""
    refused: dict[str, int] = _zeros("origin", *CLOSE_REASONS)
    """Connections that were not let in."""
    closed: dict[str, int] = _zeros("client", *CLOSE_REASONS)
    """Connections that have ended."""
    degraded_seconds: float = 0.0
    """Of outages that are over."""

    def written(self, batches: Sequence[Outgoing], now: float) -> None:
        """A connection was written ``batches``, each once, at ``now``."""
        for batch in batches:
            self.delivered += len(batch.events)
            if batch.since is not None:
                self.lag.observe(now - batch.since)
