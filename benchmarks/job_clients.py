"""The clients of `benchmarks.jobs` and `benchmarks.connections`: each watches one of many jobs."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.burst import Burst
from benchmarks.client_processes import DRAIN_SECONDS, SELECT_SECONDS, SILENCE_SECONDS
from benchmarks.clients import ClientPool
from benchmarks.measurement import DeliveryErrors, Measurement, percentiles
from benchmarks.process_time import memory_bytes, process_seconds
from benchmarks.traffic import job_share
from benchmarks.wires import Wire

SETTLE_SECONDS = 1.0
"""After the clients have joined or left, but not longer than what is measured takes: not every
contender confirms a subscription."""
LOOK_SECONDS = 0.1
"""Between two looks whether every client has every event."""
WARM_UP_CLIENTS = 50
"""They join and leave before memory is measured: what is made once, at the first ones, is not what
a connection costs."""


class Usage:
    """The processor time that the processes of a burst use from now on."""

    def __init__(self, burst: Burst) -> None:
        self._pids = burst.pids
        self._before = {role: process_seconds(pid) for role, pid in self._pids.items()}

    def seconds(self, role: str) -> float:
        """Return what the process with this role has used; not a number if nobody can tell."""
        before = self._before.get(role)
        after = None if before is None else process_seconds(self._pids[role])
        return float("nan") if before is None or after is None else after - before


def follow_jobs(
    port: int, wire: Wire, watchers: int, burst: Burst, pipe: Connection[Any, Any]
) -> None:
    """Watch each job with ``watchers`` clients, and send a `Measurement` of the burst."""
    topics = [topic for topic in burst.topics for _ in range(watchers)]
    pool, facts = _join(port, wire, topics, burst)
    usage = Usage(burst)
    burst.go.set()
    _receive_all(pool, burst, watchers)
    spent = {role: usage.seconds(role) for role in ("server", "broker")}
    jobs, published = len(burst.topics), burst.published.value
    for role, seconds in spent.items():
        facts[f"{role}_us"] = seconds / (max(1, published) * watchers) * 1e6
    delays, last, errors = [], 0, DeliveryErrors()
    for place, client in enumerate(pool.clients):
        errors += client.errors(job_share(published, jobs, place // watchers))
        for at, events in client.frames:
            last = max(last, at)
            delays += [(at - event.data.at) / 1e6 for event in events if event.data.n >= 0]
    for name, value in (percentiles(delays) or {}).items():
        facts[f"{name}_ms"] = value
    facts["events_published"] = published
    seconds = max(1e-3, last / 1e9 - burst.started_at.value)
    pipe.send(Measurement(len(delays), seconds, errors, facts))
    pool.close()


def _receive_all(pool: ClientPool, burst: Burst, watchers: int) -> None:
    """Receive until every client has every event, or nothing arrives any more."""
    jobs = len(burst.topics)
    received_at = look_at = time.monotonic()
    deadline = received_at + burst.pace.seconds + DRAIN_SECONDS
    while (now := time.monotonic()) < deadline:
        if pool.receive(SELECT_SECONDS):
            received_at = now
        if burst.done.is_set() and now >= look_at:
            look_at = now + LOOK_SECONDS
            missing = any(
                client.received < job_share(burst.published.value, jobs, place // watchers)
                for place, client in enumerate(pool.clients)
            )
            if not missing or now > received_at + SILENCE_SECONDS:
                return


def idle_and_return(
    port: int, wire: Wire, returning: int, burst: Burst, pipe: Connection[Any, Any]
) -> None:
    """Watch each job with one client, do nothing, lose ``returning`` of them, and let them return.

    Sends a `Measurement` without events; its seconds are those of the crowd.
    """
    seconds = burst.pace.seconds
    settle_seconds = min(SETTLE_SECONDS, seconds)
    ClientPool(port, wire, burst.topics[:WARM_UP_CLIENTS]).close()
    time.sleep(settle_seconds)
    before = memory_bytes(burst.pids["server"])
    pool, facts = _join(port, wire, burst.topics, burst)
    after = memory_bytes(burst.pids["server"])
    if before is not None and after is not None:
        facts["memory_kib"] = (after - before) / len(burst.topics) / 1024
    usage = Usage(burst)
    pool.idle(seconds)
    for role in ("server", "broker"):
        facts[f"{role}_idle_percent"] = usage.seconds(role) / seconds * 100
    cursors = [client.cursor for client in pool.clients[:returning]]
    pool.leave(returning)
    pool.idle(settle_seconds)
    usage = Usage(burst)
    start = time.monotonic()
    crowd = ClientPool(port, wire, burst.topics[: len(cursors)], cursors, at_once=True)
    took = time.monotonic() - start
    facts["crowd_ms"] = took / len(cursors) * 1e3
    facts["crowd_cpu_ms"] = usage.seconds("server") / len(cursors) * 1e3
    burst.go.set()
    pipe.send(Measurement(0, took, DeliveryErrors(), facts))
    crowd.close()
    pool.close()


def _join(
    port: int, wire: Wire, topics: list[str], burst: Burst
) -> tuple[ClientPool, dict[str, Any]]:
    """Join one after the other; return the clients, and what that took for each of them."""
    usage, start = Usage(burst), time.monotonic()
    pool = ClientPool(port, wire, topics)
    facts = {
        "join_ms": (time.monotonic() - start) / len(topics) * 1e3,
        "join_cpu_ms": usage.seconds("server") / len(topics) * 1e3,
    }
    pool.idle(min(SETTLE_SECONDS, burst.pace.seconds))
    return pool, facts
