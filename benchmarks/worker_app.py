"""The Celery application of `benchmarks.worker`, watched as the environment says.

As a program it publishes tasks: ``python -m benchmarks.worker_app QUEUE PREFIX COUNT``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from celery import Celery, signals

WATCH = "BENCHMARK_WATCH"
"""The variable with the contender's name, a key of `WATCHES`."""
BROKER = "BENCHMARK_BROKER"
OWNERS = 20
"""Users whose tasks take turns; each has a feed."""

app = Celery("benchmark", broker=os.environ.get(BROKER, "memory://"), set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_proc_alive_timeout=60.0,
)


@app.task(name="add")  # type: ignore[untyped-decorator]
def add(first: int, second: int) -> int:
    """Return the sum: a task that takes no time, so that what Celery does around it is measured."""
    return first + second


def watch_nothing() -> None:
    """Let Celery run as it is."""


def watch_with_events() -> None:
    """Send Celery's own events, which Flower shows; the worker has the option ``-E`` too."""
    app.conf.update(worker_send_task_events=True, task_send_sent_event=True)


def watch_with_opentelemetry() -> None:
    """Make a span of each task, as the instrumentation's documentation says, and export none."""
    instrumentation = import_module("opentelemetry.instrumentation.celery")
    trace = import_module("opentelemetry.trace")
    sdk = import_module("opentelemetry.sdk.trace")
    export = import_module("opentelemetry.sdk.trace.export")

    class Discarding(export.SpanExporter):  # type: ignore[misc,name-defined]
        def export(self, spans: object) -> object:
            return export.SpanExportResult.SUCCESS

    def instrument(**_: object) -> None:
        trace.set_tracer_provider(sdk.TracerProvider())
        trace.get_tracer_provider().add_span_processor(export.BatchSpanProcessor(Discarding()))
        instrumentation.CeleryInstrumentor().instrument()

    # The exporter's thread does not survive a fork, so a pool's process begins by itself.
    if os.environ.get("BENCHMARK_POOL") == "prefork":
        signals.worker_process_init.connect(instrument, weak=False)
    else:
        instrument()


def watch_with_sentry() -> None:
    """Make a transaction of each task, and send none."""
    sdk = import_module("sentry_sdk")
    transport = import_module("sentry_sdk.transport")

    class Discarding(transport.Transport):  # type: ignore[misc,name-defined]
        def capture_envelope(self, envelope: object) -> None:
            pass

    sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        traces_sample_rate=1.0,
        transport=Discarding,
        integrations=[import_module("sentry_sdk.integrations.celery").CeleryIntegration()],
    )


WATCHES: dict[str, Callable[[], None]] = {
    "unwatched": watch_nothing,
    # The `celery` command installs ours by itself.
    "semantik-realtime": watch_nothing,
    "semantik-realtime, owner": watch_nothing,
    "celery events": watch_with_events,
    "opentelemetry": watch_with_opentelemetry,
    "sentry": watch_with_sentry,
}

if WATCH in os.environ:
    WATCHES[os.environ[WATCH]]()


def publish(queue: str, prefix: str, count: int) -> None:
    """Publish so many tasks with the ids ``PREFIX-0``, ``PREFIX-1`` … to a queue, as an application
    of the contender does.
    """
    watch = os.environ[WATCH]
    tracker = None
    if watch.startswith("semantik"):
        from semantik_realtime.worker.tracker import install

        tracker = install()
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            add.apply_async(
                (number, 1),
                task_id=f"{prefix}-{number}",
                queue=queue,
                headers={"realtime_owner": number % OWNERS} if watch.endswith("owner") else {},
                producer=producer,
            )
    if tracker is not None and not tracker.flush():
        raise SystemExit("the backend has not acknowledged all events")


if __name__ == "__main__":
    publish(sys.argv[1], sys.argv[2], int(sys.argv[3]))
