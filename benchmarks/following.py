"""Processes of clients: what they do, and what became of the events on their way to them."""

from __future__ import annotations

import contextlib
import select
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.burst import Burst
from benchmarks.census import Census
from benchmarks.clients import Client, Crowd, connect
from benchmarks.report import Measurement
from benchmarks.wires import Reader, Wire

STALL_SECONDS = 2.0
"""After so long without an event, the publisher need not wait for those on the way."""
SILENCE_SECONDS = 8.0
"""After so long without an event, what has not come is lost."""
CURSORLESS_SECONDS = 1.0
"""The same for a client that came back without a place to ask from."""
DRAIN_SECONDS = 30.0
"""How long it may take after the publisher's time is over."""
SETTLE_SECONDS = 0.5
"""For what is still on its way when all have joined: subscriptions that nobody confirms."""
WAIT_SECONDS = 0.1
REST_SECONDS = 0.001
EXTRA_SECONDS = 0.1
"""How long to listen for what comes though everything is there."""


def follow(port: int, wire: Wire, count: int, burst: Burst, pipe: Connection[Any, Any]) -> None:
    """A process: ``count`` clients follow a burst. Sends a `Measurement` into the pipe.

    It is of deliveries, from the first publish to the last delivery.
    """
    crowd = Crowd(port, wire, burst.topic, count)
    clients = crowd.clients
    # Where only the throughput counts, many frames are read at a time: a wake-up for each
    # would take processor time from the server.
    pause = REST_SECONDS if burst.pace.rate is None else 0
    time.sleep(SETTLE_SECONDS)
    cpu = time.process_time()
    burst.go.set()
    heard_at = time.monotonic()
    deadline = heard_at + burst.pace.seconds + DRAIN_SECONDS
    slowest = clients[0]
    while (now := time.monotonic()) < deadline:
        if crowd.take(WAIT_SECONDS):
            heard_at = now
            if slowest.reached > burst.reached.value:
                slowest = min(clients, key=lambda client: client.reached)
                burst.reached.value = max(burst.reached.value, slowest.reached)
        elif now > heard_at + STALL_SECONDS:
            burst.reached.value = burst.told.value
        if burst.done.is_set():
            if slowest.reached >= burst.told.value or now > heard_at + SILENCE_SECONDS:
                break
        time.sleep(pause)
    while crowd.take(EXTRA_SECONDS) and time.monotonic() < deadline:
        pass
    cpu = time.process_time() - cpu
    last = max((client.frames[-1][0] for client in clients if client.frames), default=0)
    seconds = max(1e-3, last / 1e9 - burst.started_at.value)
    measurement = measure(clients, burst, seconds)
    measurement.facts["client_cpu_share"] = round(cpu / seconds, 2)
    if burst.pace.window is not None:
        measurement.facts["window"] = burst.pace.window
    if burst.pace.rate is not None:
        delays = [
            at / 1e6 - event.data.at / 1e6
            for client in clients
            for at, events in client.frames
            for event in events
        ]
        measurement.facts["milliseconds"] = percentiles(delays)
    pipe.send(measurement)
    crowd.close()


def come_back(port: int, wire: Wire, count: int, burst: Burst, pipe: Connection[Any, Any]) -> None:
    """A process: clients join, leave, miss a burst, and come back one after the other.

    The `Measurement` is of deliveries, in the time of all of them; its
    milliseconds are from the first word to the server to the last event.
    """
    crowd = Crowd(port, wire, burst.topic, count)
    cursors = [client.cursor for client in crowd.clients]
    crowd.close()
    burst.go.set()
    burst.done.wait(burst.pace.seconds + DRAIN_SECONDS)
    told = burst.told.value
    reader = Reader(wire, burst.topic)
    clients, delays = [], []
    for cursor in cursors:
        patience = SILENCE_SECONDS if cursor is not None else CURSORLESS_SECONDS
        start = time.monotonic_ns()
        client = connect(port, reader)
        client.upgrade(wire, burst.topic, cursor)
        with contextlib.suppress(ConnectionError):
            while select.select([client.socket], [], [], patience)[0]:
                client.take()
                if client.reached >= told:
                    patience = EXTRA_SECONDS
        last = client.frames[-1][0] if client.frames else time.monotonic_ns()
        delays.append((last - start) / 1e6)
        clients.append(client)
    measurement = measure(clients, burst, sum(delays) / 1e3)
    if not measurement.census.lost:
        measurement.facts["milliseconds"] = percentiles(delays)
    pipe.send(measurement)
    for client in clients:
        client.socket.close()


def measure(clients: Sequence[Client], burst: Burst, seconds: float) -> Measurement:
    """What became of a burst."""
    told = burst.told.value
    ended_at = burst.ended_at.value or time.monotonic()
    frames = sum(len(client.frames) for client in clients)
    deliveries = sum(len(events) for client in clients for _, events in client.frames)
    facts: dict[str, Any] = {
        "sockets": len(clients),
        "events_asked": burst.pace.events,
        "events_published": told,
        "publish_seconds": round(ended_at - burst.started_at.value, 4),
        "events_per_frame": round(deliveries / max(1, frames), 1),
    }
    census = sum((client.census(told) for client in clients), Census())
    return Measurement(deliveries, seconds, census, facts)


def percentiles(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """The 50th, 95th and 99th; None of fewer than two values.

    >>> percentiles([1.0, 2.0, 3.0])
    {'p50': 2.0, 'p95': 2.9, 'p99': 2.98}
    """
    if len(milliseconds) < 2:
        return None
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return {f"p{place}": round(cuts[place - 1], 2) for place in (50, 95, 99)}
