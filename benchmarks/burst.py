"""A publisher that keeps so many events on the way, and what it shares with the clients."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.traffic import begin_job, tell
from semantik_realtime.config import load_settings
from semantik_realtime.realtime import Runtime

GO_SECONDS = 60.0
FLUSH_SECONDS = 30.0
PAUSE_SECONDS = 0.0005


@dataclass
class Burst:
    """What to publish, and how far it is: shared between processes, each value with one writer.

    ``window`` is how many events may be published that the slowest client does
    not have: so much waits at most, and the server never has a reason to
    conflate.
    """

    job_id: str
    events: int
    seconds: float
    window: int
    lose: int
    ready: Any
    """Set by the publisher: the topic exists."""
    go: Any
    """Set by the clients: all of them follow."""
    reached: Any
    """By the clients: the number up to which the slowest of them has got."""
    sent: Any
    """By the publisher, at the end: how many numbers it used; -1 before."""
    started_at: Any
    """By the publisher: when it began, on the clock of `time.monotonic`."""

    @property
    def topic(self) -> str:
        """Where the events go."""
        return f"job:{self.job_id}"


def make_burst(
    context: multiprocessing.context.SpawnContext,
    job_id: str,
    events: int,
    seconds: float,
    window: int,
    lose: int,
) -> Burst:
    """A burst that has not begun."""
    return Burst(
        job_id,
        events,
        seconds,
        window,
        lose,
        context.Event(),
        context.Event(),
        context.Value("q", 0, lock=False),
        context.Value("q", -1, lock=False),
        context.Value("d", 0.0, lock=False),
    )


def publish_burst(runtime: Runtime, burst: Burst) -> None:
    """Publish when told, as fast as the window allows."""
    job = begin_job(runtime, burst.job_id)
    runtime.emitter.flush(FLUSH_SECONDS)
    burst.ready.set()
    if not burst.go.wait(GO_SECONDS):
        return
    burst.started_at.value = start = time.monotonic()
    sent = 0
    while sent < burst.events and time.monotonic() - start < burst.seconds:
        end = min(burst.reached.value + burst.window, burst.events)
        if end > sent:
            tell([job], sent, end, lose=burst.lose)
            sent = end
        else:
            time.sleep(PAUSE_SECONDS)
    runtime.emitter.flush(FLUSH_SECONDS)
    burst.sent.value = sent


def run_publisher(url: str, burst: Burst) -> None:
    """`publish_burst` as a process."""
    runtime = Runtime(load_settings(backend="redis", url=url))
    publish_burst(runtime, burst)
    runtime.close()
