"""The metrics of a web process."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from semantik_realtime.backends import border
from semantik_realtime.errors import ConfigError
from semantik_realtime.metrics import Measure, Metrics, is_shared, register, writing
from semantik_realtime.sinks.runner import SinkRunner
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.hub.stats import LAG_BOUNDS
from semantik_realtime.web.job_ends import JobEnds
from semantik_realtime.web.lost_jobs import LostJobs
from semantik_realtime.web.outage import DegradedMode
from semantik_realtime.web.unauthenticated import UnauthenticatedLimiter

WIRES = ("native", "compat", "sse")


class Served(Protocol):
    """What the measures read: `semantik_realtime.web.state.WebState`."""

    hub: Hub
    outage: DegradedMode
    unauthenticated: UnauthenticatedLimiter
    ends: JobEnds
    lost: LostJobs
    sinks: SinkRunner


def _connections(served: Served) -> dict[str, int]:
    tally = Tally(watcher.wire_name for watcher in list(served.hub.connections))
    return {wire: tally[wire] for wire in WIRES}


SERVING = (
    Measure(Gauge, "connections", "Open connections.", _connections, label="wire"),
    Measure(
        Counter,
        "connections_closed",
        "Connections that have ended, by reason.",
        lambda served: served.hub.stats.closed,
        label="reason",
    ),
    Measure(
        Counter,
        "connections_refused",
        "Connections that were refused, by reason.",
        lambda served: served.hub.stats.refused,
        label="reason",
    ),
    Measure(
        Gauge,
        "unauthenticated",
        "WebSockets that have sent no credential yet.",
        lambda served: served.unauthenticated.count,
    ),
    Measure(
        Gauge,
        "subscriptions",
        "Topics that connections follow, counted for each connection.",
        lambda served: sum(watcher.subscriptions for watcher in list(served.hub.connections)),
    ),
    Measure(
        Gauge,
        "subscriptions_waiting",
        "Subscriptions that wait for an owner who may watch.",
        lambda served: served.hub.stats.waiting,
    ),
    Measure(
        Counter,
        "subscriptions_denied",
        "Refused subscriptions, by reason.",
        lambda served: served.hub.stats.denied,
        label="reason",
    ),
    Measure(Gauge, "topics", "Topics that are watched.", lambda served: served.hub.topics),
    Measure(
        Counter,
        "events_received",
        "Events that the backend delivered.",
        lambda served: served.hub.stats.received,
    ),
    Measure(
        Counter,
        "events_delivered",
        "Events written to connections, counted for each connection.",
        lambda served: served.hub.stats.delivered,
    ),
    Measure(
        Counter,
        "events_conflated",
        "Events left out of what was written to slow connections, counted for each connection.",
        lambda served: served.hub.stats.conflated,
    ),
    Measure(
        Histogram,
        "delivery_lag_seconds",
        "From the time of the oldest event of a batch to the end of its write to a connection.",
        lambda served: served.hub.stats.lag,
        bounds=LAG_BOUNDS,
    ),
    Measure(
        Gauge,
        "outbox_bytes",
        "About how many bytes wait to be written to connections.",
        lambda served: sum(watcher.outbox_bytes for watcher in list(served.hub.connections)),
    ),
    Measure(
        Counter,
        "syncs",
        "Answers to subscriptions: replays, and snapshots by reason.",
        lambda served: served.hub.stats.syncs,
        label="reason",
    ),
    Measure(
        Counter,
        "resyncs",
        "Topics that were read again, by reason.",
        lambda served: served.hub.stats.resyncs,
        label="reason",
    ),
    Measure(
        Gauge,
        "reads_waiting",
        "Reads of topics that wait for their turn.",
        lambda served: served.hub.reads.waiting,
    ),
    Measure(
        Counter,
        "reads_failed",
        "Reads of topics that failed while the backend answered a small one.",
        lambda served: served.hub.failed_reads,
    ),
    Measure(
        Counter,
        "unreadable",
        "What the backend holds that no client can read, by what it is, each time it was read.",
        lambda served: border.unreadable,
        label="kind",
    ),
    Measure(
        Counter,
        "requests_busy",
        "HTTP requests that were refused because there were too many, by whose they were.",
        lambda served: served.hub.stats.busy,
        label="by",
    ),
    Measure(
        Gauge,
        "degraded",
        "1 while the backend is away.",
        lambda served: served.outage.since is not None,
    ),
    Measure(
        Counter,
        "degraded_seconds",
        "How long the backend was away.",
        lambda served: served.outage.seconds,
    ),
    Measure(
        Counter,
        "jobs_ended",
        "Jobs that this server ended in place of their workers, by status.",
        lambda served: served.ends.counts,
        label="status",
    ),
    Measure(
        Counter,
        "leases_overdue",
        "Worker processes that this server found gone.",
        lambda served: served.lost.overdue,
    ),
    Measure(
        Counter,
        "sink_events",
        "Events of sinks that this server took, by outcome.",
        lambda served: served.sinks.outcomes,
        label="outcome",
    ),
    Measure(
        Gauge,
        "sink_queued",
        "Events in the queues of the sinks, those that are handled now too.",
        lambda served: sum(one.queued for one in list(served.sinks.statuses.values())),
    ),
    Measure(
        Gauge,
        "sink_oldest_seconds",
        "Age of the oldest event in the queue of a sink.",
        lambda served: max(
            (one.oldest_seconds for one in list(served.sinks.statuses.values())), default=0.0
        ),
    ),
    Measure(
        Gauge,
        "sink_dead",
        "Dead letters of the sinks.",
        lambda served: sum(one.dead for one in list(served.sinks.statuses.values())),
    ),
    Measure(
        Gauge,
        "sink_lost",
        "Events and dead letters that were removed because there were too many.",
        lambda served: sum(one.lost for one in list(served.sinks.statuses.values())),
    ),
)


class WebMetrics:
    """The metrics of a web process and of its emitters, in ``registry`` or one of their own.

    Raises:
        ConfigError: the registry has such metrics already.
        OSError: the directory that processes share cannot be written.
    """

    def __init__(
        self,
        served: Served,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._metrics = (Metrics(SERVING, lambda: [served]), writing())
        try:
            self.registry = register(self._metrics, registry)
        except ValueError as error:
            raise ConfigError(f"registry: {error}") from error
        if is_shared():
            served.hub.on_tick(self.flush)

    def flush(self) -> None:
        """Write the counts to the files that other processes read. Raises nothing."""
        for metrics in self._metrics:
            metrics.flush_quietly()

    async def page(self, accept: str) -> tuple[bytes, str]:
        """Return the page for a scrape that accepts ``accept``, and its content type."""
        if is_shared():
            self.flush()
        encode, content_type = choose_encoder(accept)
        # A host's collectors may be slow, and live traffic must not wait for them.
        return await asyncio.to_thread(encode, self.registry), content_type
