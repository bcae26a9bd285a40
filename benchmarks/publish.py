"""How fast one process publishes, beside a bare pipelined XADD of the same bytes.

::

    python -m benchmarks.publish --backends memory,valkey --json publish.json

The yardstick does none of what an append does: no encoding, fence, chain,
state, trimming, expiry or publishing. A watcher in another process receives
every event of the other rows, and its work is paid for in their time.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path

import click
import redis

from benchmarks import options
from benchmarks.broker import server_url, settings_for
from benchmarks.census import Census, take_census
from benchmarks.report import Measurement, Report, make_row
from benchmarks.traffic import Told, begin_job, keep, read_event, share, tell
from benchmarks.watcher import Seen, Watcher, watching
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.current import job, pop_job, push_job

ROWS = 4
PIPELINE = 100
FLUSH_SECONDS = 60.0
MAX_WAITING = 5000
"""Drafts that may wait in the emitter: more would be dropped there, as documented."""
SLICE = 500
CALLS_AN_EVENT = 10
"""Calls of ``job.progress()`` for each event of the other rows: they are that much cheaper."""


def measure_bare(url: str, entries: Sequence[bytes], events: int, seconds: float) -> Measurement:
    """XADD ``entries`` over and over through redis-py, as a good programmer would write it."""
    client = redis.Redis.from_url(url)
    key = "bare:" + secrets.token_hex(4)
    source = cycle(entries)
    sent = 0
    start = time.perf_counter()
    while sent < events and time.perf_counter() - start < seconds:
        pipeline = client.pipeline(transaction=False)
        for entry in islice(source, PIPELINE):
            pipeline.xadd(key, {"e": entry})
        pipeline.execute()
        sent += PIPELINE
    took = time.perf_counter() - start
    kept = int(client.xlen(key))
    client.delete(key)
    client.close()
    return Measurement(sent, took, Census(lost=max(0, sent - kept), doubled=max(0, kept - sent)))


def measure_jobs(
    runtime: Runtime, watcher: Watcher, jobs: int, events: int, seconds: float, lose: int
) -> tuple[Measurement, Seen]:
    """Events by so many jobs in turn, from the first `Job.emit` to the last answer."""
    stats = runtime.emitter.stats
    before = stats.appended
    ids = [f"{secrets.token_hex(4)}-{place}" for place in range(jobs)]
    watcher.watch([f"job:{ident}" for ident in ids])
    running_jobs = [begin_job(runtime, ident) for ident in ids]
    runtime.emitter.flush(FLUSH_SECONDS)
    start = time.perf_counter()
    numbers = 0
    while numbers < events and time.perf_counter() - start < seconds:
        while runtime.emitter.waiting > MAX_WAITING:
            time.sleep(0.001)
        first, numbers = numbers, min(numbers + SLICE, events)
        tell(running_jobs, keep(first, numbers, lose))
    runtime.emitter.flush(FLUSH_SECONDS)
    took = time.perf_counter() - start
    seen = watcher.collect(stats.appended - before)
    census = check_fence(
        seen,
        {one.topic: share(numbers, jobs, place) for place, one in enumerate(running_jobs)},
        stats.appended - before,
    )
    for one in running_jobs:
        one.end("job_completed")
    runtime.emitter.flush(FLUSH_SECONDS)
    total = sum(len(event) for events in seen.values() for event in events)
    facts = {"bytes_per_event": round(total / max(1, sum(map(len, seen.values()))))}
    return Measurement(numbers, took, census, facts), seen


def measure_progress(runtime: Runtime, watcher: Watcher, calls: int, seconds: float) -> Measurement:
    """``job.progress()`` in a tight loop, while the emitter sends what is due."""
    stats = runtime.emitter.stats
    before = stats.appended
    ident = secrets.token_hex(4)
    watcher.watch([f"job:{ident}"])
    one = begin_job(runtime, ident)
    runtime.emitter.flush(FLUSH_SECONDS)
    push_job(one)
    made = 0
    start = time.perf_counter()
    while made < calls and time.perf_counter() - start < seconds:
        first, made = made, min(made + SLICE, calls)
        for current in range(first + 1, made + 1):
            job.progress(current, calls)
    took = time.perf_counter() - start
    pop_job(one)
    one.end("job_completed")
    runtime.emitter.flush(FLUSH_SECONDS)
    appended = stats.appended - before
    told = read_all(watcher.collect(appended)[one.topic])
    currents = [event.state.progress.current for event in told]
    offsets = [event.offset - 1 for event in told]
    is_told = bool(told) and told[-1].terminal and currents[-1] == made
    census = take_census(offsets, appended) | Census(
        lost=int(not is_told),
        disordered=sum(later < earlier for earlier, later in pairwise(currents)),
    )
    return Measurement(made, took, census, {"events_sent": appended})


def check_fence(seen: Seen, numbers: dict[str, int], appended: int) -> Census:
    """Count by the numbers the jobs gave, by the offsets of the log, and by the answers."""
    by_number, by_offset = Census(), Census()
    for topic, bodies in seen.items():
        told = read_all(bodies)
        by_number += take_census([one.data.n for one in told if one.data.n >= 0], numbers[topic])
        by_offset += take_census([one.offset - 1 for one in told])
    missing = appended - sum(len(bodies) for bodies in seen.values())
    return by_number | by_offset | Census(lost=max(0, missing))


def read_all(bodies: Sequence[bytes]) -> list[Told]:
    """What the census needs of events."""
    return [read_event(body) for body in bodies]


def measure_backend(
    report: Report, backend: str, events: int, rounds: int, seconds: float, lose: int
) -> None:
    """All rows over one backend, in turn in every round; ``seconds`` is for one measurement."""
    bare: list[Measurement] = []
    one: list[Measurement] = []
    hundred: list[Measurement] = []
    progress: list[Measurement] = []
    with server_url(backend) as url, contextlib.ExitStack() as stack:
        runtime = Runtime(settings_for(backend, url))
        stack.callback(runtime.close)
        watcher = stack.enter_context(watching(backend, url, runtime.backend))
        report.says(f"{backend}, warming up")
        _, seen = measure_jobs(runtime, watcher, 1, min(events, 1000), seconds, 0)
        [entries] = seen.values()
        for turn in range(1, rounds + 1):
            report.says(f"{backend}, round {turn} of {rounds}")
            if url is not None and backend != "nats":
                bare.append(measure_bare(url, entries, events, seconds))
            one.append(measure_jobs(runtime, watcher, 1, events, seconds, lose)[0])
            hundred.append(measure_jobs(runtime, watcher, 100, events, seconds, lose)[0])
            progress.append(measure_progress(runtime, watcher, events * CALLS_AN_EVENT, seconds))
    if bare:
        report.rows.append(make_row(backend, "bare XADD", bare))
    report.rows += [
        make_row(backend, "one job", one, bare, target_ratio=0.7 if bare else None),
        make_row(backend, "a hundred jobs", hundred, bare, target_ratio=0.3 if bare else None),
        make_row(backend, "job.progress()", progress, target_microseconds=5),
    ]


@click.command()
@options.backends("memory", "valkey")
@options.number("events", 20_000, 100, "Published in a round.")
@options.number("rounds", 5, 1, "Of each row.")
@options.seconds(120.0, "Of publishing, over all rows.")
@options.quick
@options.lose
@options.json_file
def main(
    backends: Sequence[str],
    events: int,
    rounds: int,
    seconds: float,
    quick: bool,
    lose: int,
    json_file: Path | None,
) -> None:
    """Publish through the emitter, beside a bare pipelined XADD.

    Fails if an event goes astray or a target is missed.
    """
    if quick:
        events, rounds, seconds = min(events, 1000), 1, min(seconds, 10.0)
    each = seconds / (len(backends) * rounds * ROWS)
    with Report("publish") as report:
        for backend in backends:
            measure_backend(report, backend, events, rounds, each, lose)
    sys.exit(report.finish(json_file, quick))


if __name__ == "__main__":
    main()
