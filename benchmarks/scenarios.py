"""The scenarios of the comparison; each is the same for every contender."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.broker import server_url, settings_for
from benchmarks.burst import Pace
from benchmarks.client_processes import catch_up, follow_burst
from benchmarks.contender import OURS, Contender
from benchmarks.harness import run_burst
from benchmarks.measurement import Measurement
from benchmarks.publish import measure_jobs
from benchmarks.recorder import running_recorder
from semantik_realtime.runtime import Runtime

WARM_UP_EVENTS = 100


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    sockets: int = 500
    """That watch one topic, in the fan-out."""
    events: int = 10_000
    """The most to publish, for publishing and the fan-out."""
    seconds: float = 8.0
    """After which publishing ends, in every scenario."""
    window: int = 100
    """Events that may be on the way to the slowest client, in the fan-out."""
    steady_rate: int = 200
    """Events per second, for the latency."""
    steady_sockets: int = 50
    """For the latency."""
    missed_events: int = 999
    """For the catch-up. The log retains 1,000 events by default, and the event before a cursor
    must still be among them."""
    returning_sockets: int = 10
    """For the catch-up."""
    lose: int = 0
    """Every so many events, one is left out; 0 leaves out none."""

    def quick(self) -> Sizes:
        """Return smaller sizes: enough to see that everything works."""
        return Sizes(
            sockets=min(self.sockets, 20),
            events=min(self.events, 400),
            seconds=min(self.seconds, 1.0),
            window=self.window,
            steady_sockets=5,
            missed_events=300,
            returning_sockets=2,
            lose=self.lose,
        )


Scenario = Callable[[Contender, Sizes], Measurement]


def publish(contender: Contender, sizes: Sizes) -> Measurement:
    """Publish from one producer, as fast as its calls return, until the broker has every event.

    Another process receives every event: for ours a backend's sink, for a peer one socket of
    its web server, because peers have no other public way to receive.
    """
    with server_url(contender.broker) as url:
        if contender.name == OURS:
            return _publish_ours(contender.broker, url, sizes)
        pace = Pace(sizes.events, sizes.seconds, lose=sizes.lose)
        measured = run_burst(contender, url, pace, follow_burst, 1)
    facts = {**measured.facts, "deliveries": measured.events}
    return Measurement(facts["events_published"], facts["publish_seconds"], measured.errors, facts)


def _publish_ours(broker: str, url: str | None, sizes: Sizes) -> Measurement:
    with (
        contextlib.closing(Runtime(settings_for(broker, url))) as runtime,
        running_recorder(broker, url, runtime.backend) as recorder,
    ):
        measure_jobs(runtime, recorder, 1, WARM_UP_EVENTS, sizes.seconds, 0)
        measured, _ = measure_jobs(runtime, recorder, 1, sizes.events, sizes.seconds, sizes.lose)
    measured.facts["events_asked"] = sizes.events
    return measured


def fanout(contender: Contender, sizes: Sizes) -> Measurement:
    """Deliver to many sockets that watch one topic, from the first publish to the last delivery."""
    pace = Pace(sizes.events, sizes.seconds, window=sizes.window, lose=sizes.lose)
    with server_url(contender.broker) as url:
        return run_burst(contender, url, pace, follow_burst, sizes.sockets)


def latency(contender: Contender, sizes: Sizes) -> Measurement:
    """Time each event from the publishing call to each client, at a steady moderate rate."""
    events = int(sizes.steady_rate * sizes.seconds)
    pace = Pace(events, 2 * sizes.seconds, rate=sizes.steady_rate, lose=sizes.lose)
    with server_url(contender.broker) as url:
        return run_burst(contender, url, pace, follow_burst, sizes.steady_sockets)


def catchup(contender: Contender, sizes: Sizes) -> Measurement:
    """Time each client from its reconnect until it has every event it missed."""
    pace = Pace(sizes.missed_events, sizes.seconds, lose=sizes.lose)
    with server_url(contender.broker) as url:
        return run_burst(contender, url, pace, catch_up, sizes.returning_sockets)


SCENARIOS: dict[str, Scenario] = {
    "publish": publish,
    "fanout": fanout,
    "latency": latency,
    "catchup": catchup,
}
