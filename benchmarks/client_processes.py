"""The processes of clients: what they do during a burst, and what they measure."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.burst import Burst
from benchmarks.clients import Client, ClientPool, connect
from benchmarks.measurement import DeliveryErrors, Measurement, percentiles
from benchmarks.wires import Reader, Wire

STALL_SECONDS = 2.0
"""After so long without an event, the publisher no longer waits for those on the way."""
SILENCE_SECONDS = 8.0
"""After so long without an event, the missing events are lost."""
CURSORLESS_SECONDS = 1.0
"""The same for a client that came back without a cursor to resume from."""
DRAIN_SECONDS = 30.0
"""How long the clients go on at most after publishing has ended."""
SETTLE_SECONDS = 0.5
"""Between the last join and the first event: not every contender confirms a subscription."""
SELECT_SECONDS = 0.1
BATCH_SECONDS = 0.001
EXTRA_SECONDS = 0.1
"""How long to wait for surplus events when every event has arrived."""


def follow_burst(
    port: int, wire: Wire, count: int, burst: Burst, pipe: Connection[Any, Any]
) -> None:
    """Receive a burst with ``count`` clients, and send a `Measurement` into the pipe.

    It measures the deliveries, from the first publish to the last delivery.
    """
    pool = ClientPool(port, wire, [burst.topic] * count)
    clients = pool.clients
    # Where only the rate matters, many frames are read at a time: to wake up for each would
    # take processor time from the server.
    pause_seconds = BATCH_SECONDS if burst.pace.rate is None else 0
    time.sleep(SETTLE_SECONDS)
    cpu = time.process_time()
    burst.go.set()
    received_at = time.monotonic()
    deadline = received_at + burst.pace.seconds + DRAIN_SECONDS
    slowest = clients[0]
    while (now := time.monotonic()) < deadline:
        if pool.receive(SELECT_SECONDS):
            received_at = now
            if slowest.received > burst.received.value:
                slowest = min(clients, key=lambda client: client.received)
                burst.received.value = max(burst.received.value, slowest.received)
        elif now > received_at + STALL_SECONDS:
            burst.received.value = burst.published.value
        if burst.done.is_set():
            if slowest.received >= burst.published.value or now > received_at + SILENCE_SECONDS:
                break
        time.sleep(pause_seconds)
    while pool.receive(EXTRA_SECONDS) and time.monotonic() < deadline:
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
    pool.close()


def catch_up(port: int, wire: Wire, count: int, burst: Burst, pipe: Connection[Any, Any]) -> None:
    """Join with ``count`` clients, disconnect, miss a burst, and come back one after the other.

    Sends a `Measurement` of the deliveries into the pipe. Its seconds are the sum over the
    clients, its milliseconds are from the connect of a client to its last event.
    """
    pool = ClientPool(port, wire, [burst.topic] * count)
    cursors = [client.cursor for client in pool.clients]
    pool.close()
    burst.go.set()
    burst.done.wait(burst.pace.seconds + DRAIN_SECONDS)
    published = burst.published.value
    reader = Reader(wire, burst.topic)
    clients, delays = [], []
    for cursor in cursors:
        wait_seconds = SILENCE_SECONDS if cursor is not None else CURSORLESS_SECONDS
        start = time.monotonic_ns()
        client = connect(port, reader)
        client.upgrade(wire, burst.topic, cursor)
        with contextlib.suppress(ConnectionError):
            while select.select([client.socket], [], [], wait_seconds)[0]:
                client.receive()
                if client.received >= published:
                    wait_seconds = EXTRA_SECONDS
        last = client.frames[-1][0] if client.frames else time.monotonic_ns()
        delays.append((last - start) / 1e6)
        clients.append(client)
    measurement = measure(clients, burst, sum(delays) / 1e3)
    if not measurement.errors.lost:
        measurement.facts["milliseconds"] = percentiles(delays)
    pipe.send(measurement)
    for client in clients:
        client.socket.close()


def measure(clients: Sequence[Client], burst: Burst, seconds: float) -> Measurement:
    """Return the deliveries to ``clients``, and their errors."""
    published = burst.published.value
    ended_at = burst.ended_at.value or time.monotonic()
    frames = sum(len(client.frames) for client in clients)
    deliveries = sum(len(events) for client in clients for _, events in client.frames)
    facts: dict[str, Any] = {
        "sockets": len(clients),
        "events_asked": burst.pace.events,
        "events_published": published,
        "publish_seconds": round(ended_at - burst.started_at.value, 4),
        "events_per_frame": round(deliveries / max(1, frames), 1),
    }
    errors = sum((client.errors(published) for client in clients), DeliveryErrors())
    return Measurement(deliveries, seconds, errors, facts)
