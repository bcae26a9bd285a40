"""The metrics of a web process."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from semantik_realtime.errors import ConfigError
from semantik_realtime.metrics import Measure, Metrics, is_shared, register, writing
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.hub.stats import LAG_BOUNDS

WIRES = ("native", "compat", "sse")


def _connections(hub: Hub) -> dict[str, int]:
    tally = Tally(watcher.wire_name for watcher in list(hub.connections))
    return {wire: tally[wire] for wire in WIRES}


SERVING = (
    Measure(Gauge, "connections", "Open connections.", _connections, label="wire"),
    Measure(
        Counter,
        "connections_closed",
        "Connections that have ended, by why.",
        lambda hub: hub.stats.closed,
        label="reason",
    ),
    Measure(
        Counter,
        "connections_refused",
        "Connections that were not let in, by why.",
        lambda hub: hub.stats.refused,
        label="reason",
    ),
    Measure(
        Gauge,
        "subscriptions",
        "Topics that connections follow, each as often as it is followed.",
        lambda hub: sum(watcher.subscriptions for watcher in list(hub.connections)),
    ),
    Measure(Gauge, "topics", "Topics that are watched.", lambda hub: hub.topics),
    Measure(
        Counter,
        "events_received",
        "Events that the backend's feed brought.",
        lambda hub: hub.stats.received,
    ),
    Measure(
        Counter,
        "events_delivered",
        "Events written to connections, each as often as it was written.",
        lambda hub: hub.stats.delivered,
    ),
    Measure(
        Histogram,
        "delivery_lag_seconds",
        "From the time of the oldest event of a batch to the end of its write to a connection.",
        lambda hub: hub.stats.lag,
        bounds=LAG_BOUNDS,
    ),
    Measure(
        Gauge,
        "outbox_bytes",
        "About how many bytes wait to be written to connections.",
        lambda hub: sum(watcher.outbox_bytes for watcher in list(hub.connections)),
    ),
    Measure(
        Counter,
        "syncs",
        "Answers to subscriptions: replays, and snapshots by their reason.",
        lambda hub: hub.stats.syncs,
        label="reason",
    ),
    Measure(
        Counter,
        "resyncs",
        "Topics that were read again, by what made it necessary.",
        lambda hub: hub.stats.resyncs,
        label="reason",
    ),
    Measure(
        Gauge,
        "degraded",
        "1 while the backend is away.",
        lambda hub: hub.degraded_since is not None,
    ),
    Measure(
        Counter,
        "degraded_seconds",
        "How long the backend was away.",
        lambda hub: hub.degraded_seconds,
    ),
)


class WebMetrics:
    """The metrics of ``hub`` and of this process's writers, in ``registry`` or one of their own.

    Raises:
        ConfigError: the registry has such metrics already.
        OSError: the directory that processes share cannot be written.
    """

    def __init__(self, hub: Hub, registry: CollectorRegistry | None = None) -> None:
        self._metrics = (Metrics(SERVING, lambda: [hub]), writing())
        try:
            self.registry = register(self._metrics, registry)
        except ValueError as error:
            raise ConfigError(f"registry: {error}") from error
        if is_shared():
            hub.on_tick = self.carry

    def carry(self) -> None:
        """Bring up to date what other processes may show. Raises nothing."""
        for metrics in self._metrics:
            metrics.carry_quietly()

    async def page(self, accept: str) -> tuple[bytes, str]:
        """What a scrape that accepts ``accept`` gets, and its content type."""
        if is_shared():
            self.carry()
        encode, content_type = choose_encoder(accept)
        # A host's collectors may take their time; live traffic must not wait for them.
        return await asyncio.to_thread(encode, self.registry), content_type
