"""Every client catches up after each kill of the broker, while worker and servers go on.

A few kills by default; more with a report of the counts::

    KILLS=50 SEED=7 pytest tests/faults/test_kills.py -s
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from configuration import environment, make_settings
from follower import Follower
from record import CLOCK, OWNER, Record
from waiting import until
from web_servers import server_processes

from semantik_realtime.config import Settings
from semantik_realtime.hookspecs import Snapshot
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import ROWS, Server

FOLDER = Path(__file__).parent
KILLS = int(os.environ.get("KILLS", "5"))
SEED = int(os.environ.get("SEED", "7"))
JOBS = 20 + 10 * KILLS
"""More than the worker can run."""
JOBS_A_CLIENT = min(4 * KILLS, 80)
FEED = f"user:{OWNER}"
BOUND_SECONDS = 15.0
"""From the broker's return until every client is live and has every end: emitter, subscription
and resync pause for up to 5 s each between two tries."""


class Outage(NamedTuple):
    returned: float
    wiped: bool
    live_seconds: float | None
    """Until the last of the steady clients was live; None: the broker was killed before."""


@pytest.mark.every_backend
@pytest.mark.timeout(90 + 30 * KILLS)
async def test_after_repeated_kills_of_the_broker_every_client_catches_up(
    server: Server, row: str, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    settings = make_settings(server.url, backend=ROWS[row].backend, max_connections=1000)
    jobs = [f"job:{number}" for number in range(JOBS)]
    started = time.monotonic()
    with contextlib.closing(Record(tmp_path)) as record:
        record.queue(job.removeprefix("job:") for job in jobs)
        path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
        variables = {"TEST_RECORD": str(tmp_path), "PYTHONPATH": path}
        async with server_processes(2, settings, app="host:app", **variables) as web_servers:
            steady = [
                Follower(web_server, CLOCK, FEED, *rng.sample(jobs, JOBS_A_CLIENT))
                for web_server in web_servers
            ]
            restless = [
                Follower(web_servers[0], FEED, *rng.sample(jobs, JOBS_A_CLIENT)) for _ in range(8)
            ]
            clients = [*steady, *restless]
            leaving = asyncio.Event()
            with _worker(settings, variables) as worker:
                async with asyncio.TaskGroup() as group:
                    for client in steady:
                        await client.open()
                    for number, client in enumerate(restless):
                        group.create_task(client.live(web_servers, random.Random(number), leaving))
                    outages = await _kill(server, steady, rng)
                    leaving.set()
                worker_report = await asyncio.to_thread(_stop, worker)
            ended = time.monotonic()
            logs = await _logs(settings, [FEED, *jobs])
            states = {f"job:{job}": (state, at) for job, (state, at) in record.rows().items()}

            def behind() -> list[object]:
                return [
                    (topic, client.views[topic].states, states.get(topic), client)
                    for client in clients
                    for topic in client.topics
                    if topic != CLOCK and not _is_right(client, topic, logs[topic], states)
                ]

            await until(lambda: not behind(), BOUND_SECONDS, lambda: behind()[:2])
            right_seconds = time.monotonic() - ended
            for client in clients:
                await client.close()

    faults = sum((client.faults for client in clients), Counter[str]())
    reasons = sum((client.reasons for client in clients), Counter[str]())
    lateness = [seconds for client in clients for seconds in _lateness(client, states, outages)]
    lives = [outage.live_seconds for outage in outages if outage.live_seconds is not None]
    report = {
        "row": row,
        "seed": SEED,
        "kills": len(outages),
        "wiped": sum(outage.wiped for outage in outages),
        "seconds": round(time.monotonic() - started, 1),
        "events appended": worker_report["appended"],
        "connections": sum(client.connections for client in clients),
        "worst seconds from the return to live": round(max(lives), 2),
        "worst seconds from an end, or the return, to its clients": round(max(lateness), 2),
        "seconds until all was right": round(right_seconds, 2),
        "faults": dict(+faults),
        "snapshots": dict(reasons),
        **sum((client.figures for client in clients), Counter[str]()),
        **{name: worker_report[name] for name in ("refused", "dropped", "failures")},
    }
    print(json.dumps(report, indent=1))
    assert worker_report["flushed"]
    assert worker_report["dropped"] == 0
    assert not +faults
    assert max(lives) < BOUND_SECONDS
    assert max(lateness) < BOUND_SECONDS
    assert len(lateness) > 5 * KILLS
    # Of the jobs that no empty broker has lost, every step is in the log, once and in order;
    # and the user's feed has their ends.
    whole = [topic for topic in worker_report["steps"] if _steps(logs[topic])[:1] == [(1, 0)]]
    assert len(whole) > 2 * KILLS
    for topic in whole:
        steps = enumerate(worker_report["steps"][topic], 1)
        assert _steps(logs[topic]) == [(run, i) for run, count in steps for i in range(count)]
        for client in clients:
            shown = client.views[FEED].states[topic.removeprefix("job:")]
            assert shown["status"] == states[topic][0]["status"]


async def _kill(server: Server, steady: Sequence[Follower], rng: random.Random) -> list[Outage]:
    """Kill and start the broker: mostly when all clients are live, sometimes before.

    In the first half it sometimes returns empty.
    """
    outages: list[Outage] = []
    for number in range(KILLS):
        if not outages or outages[-1].live_seconds is not None:
            now = time.monotonic()
            await until(lambda now=now: all(client.clock > now for client in steady), 20, steady)
            await asyncio.sleep(rng.uniform(0.1, 1.0))
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(rng.choice((0.0, 0.0, 0.3, 1.0, 2.5)))
        wiped = number == 0 or (number < KILLS // 2 and rng.random() < 0.5)
        if wiped:
            server.wipe()
        await asyncio.to_thread(server.start)
        returned = time.monotonic()
        live_seconds = None
        if number == KILLS - 1 or rng.random() < 0.75:
            await until(
                lambda returned=returned: all(client.clock > returned for client in steady),
                BOUND_SECONDS,
                lambda: steady,
            )
            live_seconds = max(client.live_at(returned) for client in steady) - returned
        else:
            await asyncio.sleep(rng.uniform(0.0, 0.5))
        outages.append(Outage(returned, wiped, live_seconds))
    return outages


@contextlib.contextmanager
def _worker(settings: Settings, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    worker = subprocess.Popen(
        [sys.executable, FOLDER / "worker_process.py", variables["TEST_RECORD"], str(SEED)],
        env={**os.environ, **environment(settings), **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        try:
            yield worker
        finally:
            if worker.poll() is None:
                worker.kill()


def _stop(worker: subprocess.Popen[str]) -> dict[str, Any]:
    worker.send_signal(signal.SIGTERM)
    worker_report, _ = worker.communicate(timeout=45)
    found: dict[str, Any] = json.loads(worker_report)
    return found


async def _logs(settings: Settings, topics: Sequence[str]) -> dict[str, Snapshot]:
    """Read the logs from the broker."""
    runtime = Runtime(settings)
    await runtime.backend.open()
    try:
        return {topic: await runtime.backend.snapshot(topic, None, 1000) for topic in topics}
    finally:
        await runtime.backend.close()
        runtime.close()


def _is_right(
    client: Follower, topic: str, log: Snapshot, states: dict[str, tuple[dict[str, Any], float]]
) -> bool:
    """Return True if a client is at the end of the log and shows the job as the record does."""
    view = client.views[topic]
    if not view.synced or view.cursor != (str(log.cursor) if log.cursor else None):
        return False
    if topic == FEED:
        return True
    state, known = view.states.get(topic.removeprefix("job:"), {}), states[topic][0]
    return (state.get("status"), state.get("attempt")) == (known["status"], known["attempt"])


def _steps(log: Snapshot) -> list[tuple[int, int]]:
    """Return the run and number of each step in a job's log."""
    events = [json.loads(event.json) for event in log.events]
    return [(e["data"]["run"], e["data"]["i"]) for e in events if e["type"] == "step"]


def _lateness(
    client: Follower, states: dict[str, tuple[dict[str, Any], float]], outages: Sequence[Outage]
) -> Iterator[float]:
    """Yield how many seconds after an end, or after it could be delivered, a client got it."""
    for topic, shown in client.ended.items():
        could = [*(outage.returned for outage in outages), *client.opened]
        yield shown - max(states[topic][1], *(when for when in could if when < shown))
