"""Metrics for Prometheus, and those of the emitters, which every process has that writes.

A hot path counts in a plain number. `Metrics.flush` adds it to the metric at
each scrape; where processes share their counts, because
``PROMETHEUS_MULTIPROC_DIR`` is set, also once a second. Needs prometheus-client.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    make_wsgi_app,
)
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from semantik_realtime.emitter.registry import Registered, emitters
from semantik_realtime.forks import on_fork

logger = logging.getLogger(__name__)

NAMESPACE = "semantik_realtime"
SHARED_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable, prometheus-client's own, that makes processes share their counts."""
FLUSH_SECONDS = 1.0
"""How often `MetricsFlusher` flushes."""
FORK_SECONDS = 0.5
"""How long a fork waits for a flush to end."""

# Held during a flush, and during a fork.
_flushing = threading.Lock()
# Whether the fork that is under way holds `_flushing`.
_is_held = False


def _before_fork() -> None:
    # A child must not inherit this lock locked, nor the lock of prometheus-client, which is
    # acquired under it. With a limit, because metrics must never block a fork.
    global _is_held
    _is_held = _flushing.acquire(timeout=FORK_SECONDS)


def _after_fork() -> None:
    if _is_held:
        _flushing.release()


def _after_fork_in_child() -> None:
    global _flushing
    _flushing = threading.Lock()


on_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


class Spread(Protocol):
    """How values are spread over the buckets of a histogram."""

    buckets: list[int]
    """The count of each bucket, not cumulated."""
    sum: float
    """Of all values."""


class Measure(msgspec.Struct, frozen=True):
    """One metric, and how to read it from a source.

    ``read`` returns a number or, with a ``label``, a number for each value of
    the label; for a histogram, which has ``bounds``, a `Spread`.
    """

    type: type[Counter] | type[Gauge] | type[Histogram]
    name: str
    meaning: str
    read: Callable[[Any], Any]
    label: str | None = None
    bounds: Sequence[float] = ()


class Metrics:
    """The ``measures`` of all ``sources``, summed. ``sources`` is called at each flush.

    A collector for any number of registries. Its methods may be called from
    any thread, also after a fork.

    Raises:
        OSError: the directory that processes share cannot be written.
    """

    def __init__(self, measures: Sequence[Measure], sources: Callable[[], Iterable[Any]]) -> None:
        self._sources = sources
        self._metrics = [(measure, _metric(measure)) for measure in measures]
        # The counts of each source that the metrics include already. Written by `flush`.
        self._known: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
        # The process whose counts `_known` has.
        self._pid = os.getpid()
        # Whether `flush_quietly` has failed before.
        self._has_failed = False

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        self.flush()
        for _, metric in self._metrics:
            yield from metric.collect()

    def flush(self) -> None:
        """Bring the metrics up to date with their sources."""
        with _flushing:
            if self._pid != os.getpid():
                # A forked process counts from zero again.
                self._pid = os.getpid()
                self._known.clear()
            sources = list(self._sources())
            for measure, metric in self._metrics:
                if isinstance(metric, Gauge):
                    _set(metric, measure, sources)
                    continue
                for source in sources:
                    known = self._known.setdefault(source, {})
                    if isinstance(metric, _Buckets):
                        metric.add(measure.read(source), known)
                    else:
                        _count(metric, measure, source, known)

    def flush_quietly(self) -> None:
        """Flush; an error is logged once instead of raised."""
        try:
            self.flush()
        except Exception:
            if not self._has_failed:
                logger.exception("metrics: not flushed (logged once)")
            self._has_failed = True


class _Buckets(Histogram):
    """A histogram of values that the source has sorted into buckets."""

    def add(self, spread: Spread, known: dict[Any, Any]) -> None:
        known_counts, known_sum = known.get(self._name, ([0] * len(spread.buckets), 0.0))
        counts, total = list(spread.buckets), spread.sum
        for bucket, count, known_count in zip(self._buckets, counts, known_counts, strict=True):
            if count > known_count:
                bucket.inc(count - known_count)
        self._sum.inc(total - known_sum)
        known[self._name] = counts, total


def _metric(measure: Measure) -> Counter | Gauge | Histogram:
    labels = [measure.label] if measure.label else []
    options: dict[str, Any] = {"namespace": NAMESPACE, "registry": None}
    if measure.type is Histogram:
        return _Buckets(measure.name, measure.meaning, labels, buckets=measure.bounds, **options)
    if measure.type is Gauge:
        options["multiprocess_mode"] = "livesum"
    return measure.type(measure.name, measure.meaning, labels, **options)


def _values(measure: Measure, source: Any) -> Mapping[str, float]:
    value = measure.read(source)
    return value if measure.label else {"": value}


def _set(gauge: Gauge, measure: Measure, sources: Sequence[Any]) -> None:
    totals: dict[str, float] = {}
    for source in sources:
        for label, value in _values(measure, source).items():
            totals[label] = totals.get(label, 0) + value
    for label, value in (totals or ({} if measure.label else {"": 0})).items():
        (gauge.labels(label) if label else gauge).set(value)


def _count(counter: Any, measure: Measure, source: Any, known: dict[Any, Any]) -> None:
    for label, value in _values(measure, source).items():
        # `labels()` creates the series, so zero is exported.
        child = counter.labels(label) if label else counter
        before = known.get((measure.name, label), 0)
        if value > before:
            child.inc(value - before)
            known[measure.name, label] = value


def _outcomes(emitter: Registered) -> dict[str, int]:
    stats = emitter.stats
    return {
        "appended": stats.appended,
        "duplicate": stats.duplicate,
        "stale": stats.stale,
        "closed": stats.closed,
        "foreign_owner": stats.foreign_owner,
        "rejected": stats.rejected,
        "refused": stats.refused,
        "dropped": stats.dropped,
        "unreadable": stats.unreadable,
    }


WRITING = (
    Measure(Counter, "drafts", "Drafts by outcome.", _outcomes, label="outcome"),
    Measure(
        Counter,
        "emitter_failures",
        "Calls to the backend that failed, and errors of the emitter's thread.",
        lambda emitter: emitter.stats.failures,
    ),
    Measure(
        Counter,
        "events_unpublished",
        "Events that were appended and not sent to watchers, who get them when they look.",
        lambda emitter: emitter.stats.unpublished,
    ),
    Measure(
        Gauge,
        "spool_drafts",
        "Drafts that wait for the backend.",
        lambda emitter: emitter.waiting,
    ),
    Measure(
        Gauge,
        "spool_bytes",
        "Bytes of the drafts that wait for the backend.",
        lambda emitter: emitter.waiting_bytes,
    ),
)


@functools.cache
def writing() -> Metrics:
    """Return the metrics of all emitters of this process. One object: two would count double."""
    return Metrics(WRITING, emitters)


def is_shared() -> bool:
    """Return True if the processes share their counts, in a directory of prometheus-client."""
    return SHARED_DIRECTORY in os.environ


def register(
    metrics: Iterable[Metrics], registry: CollectorRegistry | None = None
) -> CollectorRegistry:
    """Add ``metrics`` to ``registry``, or to a new one; return the registry to serve.

    Where the processes share their counts that is another registry, which has
    everything that they count with prometheus-client.

    Raises:
        ValueError: the registry has these metrics already.
    """
    if is_shared():
        shared = CollectorRegistry()
        shared.register(_AllProcesses())
        return shared
    registry = registry or CollectorRegistry()
    for one in metrics:
        registry.register(one)
    return registry


class _AllProcesses:
    """The counts of all processes, ended ones included, and the gauges of those that run."""

    def collect(self) -> Iterable[Metric]:
        for file in Path(os.environ[SHARED_DIRECTORY]).glob("gauge_live*.db"):
            pid = re.search(r"_(\d+)\.db$", file.name)
            if pid is not None and not _is_alive(int(pid[1])):
                mark_process_dead(int(pid[1]))
        counted: Iterable[Metric] = MultiProcessCollector(None).collect()
        return counted


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        # There the call below ends the process. A gauge of an ended one is shown until the
        # directory is emptied at the next start.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class MetricsFlusher:
    """Flushes once a second, in a thread that ends with the process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Set by `close`.
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="semantik-realtime-metrics", daemon=True
        )
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Flush once more and end; wait at most ``timeout_seconds``."""
        self._closing.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._metrics.flush_quietly()
        self._metrics.flush_quietly()


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing: a scrape is no event."""


def serve(address: str, registry: CollectorRegistry) -> None:
    """Serve ``registry`` at ``address`` (host:port), from a thread, without authentication.

    Raises:
        OSError: the address is not available.
    """
    host, _, port = address.rpartition(":")
    # Not its `start_http_server`, which returned nothing before 0.20.
    host = host.strip("[]")
    family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
    kind: type[WSGIServer] = type("Server", (ThreadingWSGIServer,), {"address_family": family})
    server = make_server(host, int(port), make_wsgi_app(registry), kind, _QuietHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # A child that kept the socket open would block the port for the worker's successor.
    on_fork(after_in_child=server.socket.close)
