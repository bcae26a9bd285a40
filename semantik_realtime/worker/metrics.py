"""What a worker's processes count, for Prometheus.

The children of the prefork pool do the writing, and only the main process can
be asked. So there it takes the directory that prometheus-client shares between
processes; the other pools are one process.
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


class WorkerMetrics:
    """Shows the counts of all emitters of a worker, if it is to. No receiver raises."""

    def __init__(self, runtime: Callable[[], Runtime | None]) -> None:
        self._runtime = runtime
        self._carrier: MetricsFlusher | None = None
        self._pid = 0

    def connect(self) -> None:
        """Listen to Celery; doing it twice is doing it once."""
        for signal, receiver in (
            (signals.worker_ready, self._ready),
            (signals.worker_process_init, self._process_init),
            (signals.worker_process_shutdown, self._process_shutdown),
        ):
            uid = f"semantik_realtime.metrics.{signal.name}"
            signal.connect(_guarded(receiver), weak=False, dispatch_uid=uid)

    def _ready(self, sender: Any, **_: Any) -> None:
        """The pool of the main process has started."""
        runtime = self._runtime()
        if runtime is None:
            return
        self._carry()
        address = runtime.settings.worker_metrics
        if address is None:
            return
        from semantik_realtime.metrics import is_shared, register, serve, writing

        if not is_shared() and type(sender.pool).__module__.endswith(".prefork"):
            logger.warning("metrics: without PROMETHEUS_MULTIPROC_DIR no child is counted")
        serve(address, register([writing()]))

    def _process_init(self, **_: Any) -> None:
        self._carry()

    def _process_shutdown(self, **_: Any) -> None:
        if self._carrier is not None and self._pid == os.getpid():
            self._carrier.close(CLOSE_SECONDS)

    def _carry(self) -> None:
        # The solo pool initialises the main process too.
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ or self._pid == os.getpid():
            return
        from semantik_realtime.metrics import MetricsFlusher, writing

        self._carrier, self._pid = MetricsFlusher(writing()), os.getpid()


def _guarded(receiver: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(receiver)
    def guarded(**kwargs: Any) -> None:
        try:
            receiver(**kwargs)
        except ImportError:
            logger.warning('metrics: none without pip install "semantik-realtime[metrics]"')
        except Exception as error:
            logger.error("metrics: not shown error=%s", error)

    return guarded


def show_metrics(runtime: Callable[[], Runtime | None]) -> None:
    """Show the metrics of this worker, from when it is ready, if its settings say where."""
    WorkerMetrics(runtime).connect()
