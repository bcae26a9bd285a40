"""What a worker's processes count, for Prometheus.

In the prefork pool the children write, and only the main process is scraped:
they share their counts in the directory of prometheus-client. The other pools
are one process.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import signals

from semantik_realtime.runtime import Runtime

if TYPE_CHECKING:
    from semantik_realtime.metrics import MetricsFlusher

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 0.5
"""How long a process that ends waits for its last flush."""


class WorkerMetrics:
    """Exports the counts of all emitters of a worker, if a setting says where. No receiver raises.

    Args:
        runtime: returns the runtime, or None if the tracker is off.
    """

    def __init__(self, runtime: Callable[[], Runtime | None]) -> None:
        self._runtime = runtime
        # Runs where processes share their counts, and the process that started it: it does not
        # survive a fork, so a child starts its own.
        self._flusher: MetricsFlusher | None = None
        self._flusher_pid = 0

    def connect(self) -> None:
        """Connect the receivers to Celery's signals. Idempotent."""
        for signal, receiver in (
            (signals.worker_ready, self._ready),
            (signals.worker_process_init, self._process_init),
            (signals.worker_process_shutdown, self._process_shutdown),
        ):
            uid = f"semantik_realtime.metrics.{signal.name}"
            signal.connect(_guarded(receiver), weak=False, dispatch_uid=uid)

    def _ready(self, sender: Any, **_: Any) -> None:
        # In the main process, when its pool has started.
        runtime = self._runtime()
        if runtime is None:
            return
        self._start_flusher()
        address = runtime.settings.worker_metrics
        if address is None:
            return
        from semantik_realtime.metrics import is_shared, register, serve, writing

        if not is_shared() and type(sender.pool).__module__.endswith(".prefork"):
            logger.warning("metrics: without PROMETHEUS_MULTIPROC_DIR no child is counted")
        try:
            serve(address, register([writing()]))
        except OSError as error:
            logger.error(
                "metrics: not served address=%s error=%s (SEMANTIK_REALTIME_WORKER_METRICS)",
                address,
                error,
            )

    def _process_init(self, **_: Any) -> None:
        self._start_flusher()

    def _process_shutdown(self, **_: Any) -> None:
        if self._flusher is not None and self._flusher_pid == os.getpid():
            self._flusher.close(CLOSE_SECONDS)

    def _start_flusher(self) -> None:
        # The solo pool sends both signals in the main process.
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ or self._flusher_pid == os.getpid():
            return
        from semantik_realtime.metrics import MetricsFlusher, writing

        self._flusher, self._flusher_pid = MetricsFlusher(writing()), os.getpid()


def _guarded(receiver: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(receiver)
    def guarded(**kwargs: Any) -> None:
        try:
            receiver(**kwargs)
        except ImportError:
            logger.warning('metrics: none without pip install "semantik-realtime[metrics]"')
        except Exception as error:
            logger.error("metrics: receiver failed error=%s", error)

    return guarded


def export_metrics(runtime: Callable[[], Runtime | None]) -> None:
    """Export this worker's metrics, from when it is ready, if its settings say where."""
    WorkerMetrics(runtime).connect()
