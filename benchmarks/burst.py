"""A burst of numbered events at a given pace, and the state its processes share."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.traffic import job_topic, numbers_without

READY_SECONDS = 60.0
"""How long a publisher may take to create its topics."""
GO_SECONDS = 300.0
"""How long the clients may take to join."""
PAUSE_SECONDS = 0.0005
"""Between two looks at what the clients have received."""
SLICE_EVENTS = 200
"""The most events between two looks at the clock."""


class Publisher(Protocol):
    """Publishes the events of some jobs, whose topics exist as soon as the publisher does.

    The jobs take turns: of J jobs, the one at place P publishes the numbers P, P + J, P + 2 J …,
    as its own 0, 1, 2 ….
    """

    def publish(self, numbers: Sequence[int]) -> None:
        """Publish an event for each number, in order."""

    def flush(self) -> None:
        """Return when the broker has every event."""

    def close(self) -> None:
        """Close the connections."""


@dataclass
class Pace:
    """How many events to publish, and when.

    With ``window``, at most so many events are published that the slowest client does not
    have yet. With ``rate``, so many events are published per second, whatever the clients do.
    Without either, all are published at once.
    """

    events: int
    seconds: float
    """Publishing ends after that."""
    window: int | None = None
    rate: float | None = None
    lose: int = 0
    """Every so many events, one is left out, to show that it is missed; 0 leaves out none."""

    def due(self, received: int, seconds: float) -> int:
        """Return how many events are due ``seconds`` after the start.

        Args:
            received: how many of them the slowest client has.
            seconds: since publishing began.

        >>> Pace(1000, 10, window=100).due(received=50, seconds=1.0)
        150
        >>> Pace(1000, 10, rate=200).due(received=50, seconds=1.0)
        201
        """
        if self.window is not None:
            return min(received + self.window, self.events)
        if self.rate is not None:
            return min(int(seconds * self.rate) + 1, self.events)
        return self.events


@dataclass
class Burst:
    """The events of some jobs, shared between processes; each value has one writer."""

    job_ids: Sequence[str]
    pace: Pace
    ready: Any
    """Event, set by the publisher: the topics exist."""
    go: Any
    """Event, set by the clients: publishing may begin."""
    received: Any
    """Integer, written by the clients: how many events the slowest of them has."""
    published: Any
    """Integer, written by the publisher: how many events it has published."""
    done: Any
    """Event, set by the publisher: ``published`` is final."""
    started_at: Any
    """Seconds on the clock of `time.monotonic`, written by the publisher: when it began."""
    ended_at: Any
    """The same: when the broker had the last event. 0 until then."""
    pids: dict[str, int] = field(default_factory=dict)
    """Process ids by role, those of `benchmarks.harness.run_burst`; complete for the clients."""

    @property
    def topics(self) -> list[str]:
        """The topics of the events, one for each job."""
        return [job_topic(job_id) for job_id in self.job_ids]

    @property
    def topic(self) -> str:
        """The topic of the only job."""
        [topic] = self.topics
        return topic


def make_burst(
    processes: multiprocessing.context.BaseContext, job_ids: Sequence[str], pace: Pace
) -> Burst:
    """Return a burst that has not begun."""
    return Burst(
        job_ids,
        pace,
        ready=processes.Event(),
        go=processes.Event(),
        received=processes.Value("q", 0, lock=False),
        published=processes.Value("q", 0, lock=False),
        done=processes.Event(),
        started_at=processes.Value("d", 0.0, lock=False),
        ended_at=processes.Value("d", 0.0, lock=False),
    )


def publish_burst(publisher: Publisher, burst: Burst) -> None:
    """Wait until the clients have joined, and publish at the burst's pace."""
    pace = burst.pace
    burst.ready.set()
    if not burst.go.wait(GO_SECONDS):
        return
    burst.started_at.value = start = time.monotonic()
    published = 0
    while published < pace.events and (elapsed := time.monotonic() - start) < pace.seconds:
        due = pace.due(burst.received.value, elapsed)
        if due > published:
            end = min(due, published + SLICE_EVENTS)
            publisher.publish(numbers_without(published, end, pace.lose))
            published = end
            burst.published.value = published
        else:
            time.sleep(PAUSE_SECONDS)
    publisher.flush()
    burst.ended_at.value = time.monotonic()
    burst.done.set()
