"""Numbered events at a pace, and what their publisher shares with the clients."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.traffic import keep

READY_SECONDS = 20.0
GO_SECONDS = 90.0
PAUSE_SECONDS = 0.0005
SLICE = 200
"""Most events between two looks at the clock."""


class Publisher(Protocol):
    """Publishes events of one topic. The topic exists as soon as the publisher does."""

    def tell(self, numbers: Sequence[int]) -> None:
        """Publish an event for each number, in order."""

    def flush(self) -> None:
        """Return when nothing waits here."""

    def close(self) -> None:
        """Give back what was opened."""


@dataclass
class Pace:
    """How much to publish, and when.

    ``window`` is how many events may be published that the slowest client does
    not have; ``rate`` is events a second, whatever the clients do. Without
    either, everything at once.
    """

    events: int
    seconds: float
    """No more is published after that."""
    window: int | None = None
    rate: float | None = None
    lose: int = 0
    """Leave out every so-manieth event: what a count must find."""

    def due(self, reached: int, seconds: float) -> int:
        """Up to which number to publish, so long after the start.

        >>> Pace(1000, 10, window=100).due(reached=50, seconds=1.0)
        150
        >>> Pace(1000, 10, rate=200).due(reached=50, seconds=1.0)
        201
        """
        if self.window is not None:
            return min(reached + self.window, self.events)
        if self.rate is not None:
            return min(int(seconds * self.rate) + 1, self.events)
        return self.events


@dataclass
class Burst:
    """One topic's events: shared between processes, each value with one writer."""

    job_id: str
    pace: Pace
    ready: Any
    """Set by the publisher: the topic exists."""
    go: Any
    """Set by the clients: publish."""
    reached: Any
    """By the clients: the number up to which the slowest of them has got."""
    told: Any
    """By the publisher: up to which number it has published."""
    done: Any
    """Set by the publisher: ``told`` is final."""
    started_at: Any
    """By the publisher: when it began, in seconds on the clock of `time.monotonic`."""
    ended_at: Any
    """By the publisher: when the last event was with the broker."""

    @property
    def topic(self) -> str:
        """Where the events go."""
        return f"job:{self.job_id}"


def make_burst(processes: multiprocessing.context.BaseContext, job_id: str, pace: Pace) -> Burst:
    """A burst that has not begun."""
    return Burst(
        job_id,
        pace,
        ready=processes.Event(),
        go=processes.Event(),
        reached=processes.Value("q", 0, lock=False),
        told=processes.Value("q", 0, lock=False),
        done=processes.Event(),
        started_at=processes.Value("d", 0.0, lock=False),
        ended_at=processes.Value("d", 0.0, lock=False),
    )


def publish_burst(publisher: Publisher, burst: Burst) -> None:
    """Publish when told, at the burst's pace."""
    pace = burst.pace
    burst.ready.set()
    if not burst.go.wait(GO_SECONDS):
        return
    burst.started_at.value = start = time.monotonic()
    told = 0
    while told < pace.events and (spent := time.monotonic() - start) < pace.seconds:
        due = pace.due(burst.reached.value, spent)
        if due > told:
            end = min(due, told + SLICE)
            publisher.tell(keep(told, end, pace.lose))
            told = end
            burst.told.value = told
        else:
            time.sleep(PAUSE_SECONDS)
    publisher.flush()
    burst.ended_at.value = time.monotonic()
    burst.done.set()
