"""The questions of the comparison, each put to every contender alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.broker import server_url, settings_for
from benchmarks.burst import Pace
from benchmarks.contender import OURS, Contender
from benchmarks.following import come_back, follow
from benchmarks.publish import measure_jobs
from benchmarks.report import Measurement
from benchmarks.stage import play
from benchmarks.watcher import watching
from semantik_realtime.runtime import Runtime

WARM_UP_EVENTS = 100


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    sockets: int = 500
    events: int = 10_000
    seconds: float = 8.0
    """Publishing ends then, in every scenario."""
    window: int = 100
    steady_rate: int = 200
    """Events a second where latency is measured."""
    steady_sockets: int = 50
    missed_events: int = 999
    """While clients are away. Of 1,000 that are retained by default, one is the client's place."""
    returning_sockets: int = 10
    lose: int = 0

    def quick(self) -> Sizes:
        """The same, small: does it work, not how fast it is."""
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
    """One producer, as fast as its calls return, until the last event is with the broker.

    A watcher in another process gets every event: ours is the sink of a
    backend; a peer's is one socket, for it has no other public way to listen.
    """
    with server_url(contender.broker) as url:
        if contender.name == OURS:
            return _publish_ours(contender.broker, url, sizes)
        pace = Pace(sizes.events, sizes.seconds, lose=sizes.lose)
        measured = play(contender, url, pace, follow, 1)
    facts = {**measured.facts, "deliveries": measured.events}
    return Measurement(facts["events_published"], facts["publish_seconds"], measured.census, facts)


def _publish_ours(broker: str, url: str | None, sizes: Sizes) -> Measurement:
    with (
        contextlib.closing(Runtime(settings_for(broker, url))) as runtime,
        watching(broker, url, runtime.backend) as watcher,
    ):
        measure_jobs(runtime, watcher, 1, WARM_UP_EVENTS, sizes.seconds, 0)
        measured, _ = measure_jobs(runtime, watcher, 1, sizes.events, sizes.seconds, sizes.lose)
    measured.facts["events_asked"] = sizes.events
    return measured


def fanout(contender: Contender, sizes: Sizes) -> Measurement:
    """Deliveries to many sockets that watch one topic, from the first publish to the last one."""
    pace = Pace(sizes.events, sizes.seconds, window=sizes.window, lose=sizes.lose)
    with server_url(contender.broker) as url:
        return play(contender, url, pace, follow, sizes.sockets)


def latency(contender: Contender, sizes: Sizes) -> Measurement:
    """From the call that publishes to the client that has received, at a steady modest rate."""
    events = int(sizes.steady_rate * sizes.seconds)
    pace = Pace(events, 2 * sizes.seconds, rate=sizes.steady_rate, lose=sizes.lose)
    with server_url(contender.broker) as url:
        return play(contender, url, pace, follow, sizes.steady_sockets)


def catchup(contender: Contender, sizes: Sizes) -> Measurement:
    """From a client's coming back to its having everything that it missed."""
    pace = Pace(sizes.missed_events, sizes.seconds, lose=sizes.lose)
    with server_url(contender.broker) as url:
        return play(contender, url, pace, come_back, sizes.returning_sockets)


SCENARIOS: dict[str, Scenario] = {
    "publish": publish,
    "fanout": fanout,
    "latency": latency,
    "catchup": catchup,
}
