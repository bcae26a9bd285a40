"""How fast one process publishes, beside a bare pipelined XADD of the same bytes.

::

    python -m benchmarks.publish --backends memory,valkey --json publish.json

The yardstick does nothing of what an append does besides: no encoding, fence, chain, state,
trimming, expiry or publishing. A recorder in another process receives every event of the other
rows, and they pay for the processor time it uses.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path

import click
import redis

from benchmarks import options
from benchmarks.broker import server_url, settings_for
from benchmarks.measurement import DeliveryErrors, Measurement, count_errors
from benchmarks.output import RunProgress
from benchmarks.recorder import Recorded, Recorder, running_recorder
from benchmarks.report import Report, Row, make_row
from benchmarks.traffic import (
    NumberedEvent,
    begin_job,
    emit_events,
    job_share,
    job_topic,
    numbers_without,
    read_event,
)
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.current import job, pop_job, push_job
from semantik_realtime.worker.job import Job

ROWS = 4
"""Of each backend; NATS and memory have no bare XADD."""
PIPELINE_ENTRIES = 100
FLUSH_SECONDS = 60.0
MAX_WAITING = 5000
"""Drafts that may wait in the emitter: it drops events, as documented, when there are more."""
SLICE_EVENTS = 500
"""The most events between two looks at the clock."""
CALLS_PER_EVENT = 10
"""Calls of ``job.progress()`` for each event of the other rows: they are that much cheaper."""
TARGET_ONE_JOB, TARGET_HUNDRED_JOBS = 0.7, 0.3
"""Of the rate of a bare XADD."""
TARGET_PROGRESS_MICROSECONDS = 5


def measure_bare(url: str, entries: Sequence[bytes], events: int, seconds: float) -> Measurement:
    """Append ``entries`` over and over with pipelines of XADD, the fast way with redis-py."""
    client = redis.Redis.from_url(url)
    key = "bare:" + secrets.token_hex(4)
    source = cycle(entries)
    sent = 0
    start = time.perf_counter()
    while sent < events and time.perf_counter() - start < seconds:
        pipeline = client.pipeline(transaction=False)
        for entry in islice(source, PIPELINE_ENTRIES):
            pipeline.xadd(key, {"e": entry})
        pipeline.execute()
        sent += PIPELINE_ENTRIES
    elapsed = time.perf_counter() - start
    stored = int(client.xlen(key))
    client.delete(key)
    client.close()
    errors = DeliveryErrors(lost=max(0, sent - stored), doubled=max(0, stored - sent))
    return Measurement(sent, elapsed, errors)


def measure_jobs(
    runtime: Runtime, recorder: Recorder, jobs: int, events: int, seconds: float, lose: int
) -> tuple[Measurement, Recorded]:
    """Emit events by so many jobs in turn, from the first `Job.emit` to the last acknowledgement.

    Args:
        runtime: publishes.
        recorder: receives.
        jobs: how many take turns.
        events: the most to emit.
        seconds: emitting ends after that.
        lose: every so many events, one is left out; 0 leaves out none.
    """
    stats = runtime.emitter.stats
    before = stats.appended
    with _running_jobs(runtime, recorder, jobs) as running:
        start = time.perf_counter()
        numbers = 0
        while numbers < events and time.perf_counter() - start < seconds:
            while runtime.emitter.waiting > MAX_WAITING:
                time.sleep(0.001)
            first, numbers = numbers, min(numbers + SLICE_EVENTS, events)
            emit_events(running, numbers_without(first, numbers, lose))
        runtime.emitter.flush(FLUSH_SECONDS)
        elapsed = time.perf_counter() - start
        appended = stats.appended - before
        recorded = recorder.collect(appended)
        expected = {one.topic: job_share(numbers, jobs, place) for place, one in enumerate(running)}
        errors = count_recorded_errors(recorded, expected, appended)
    total_bytes = sum(len(event) for events in recorded.values() for event in events)
    facts = {"bytes_per_event": round(total_bytes / max(1, sum(map(len, recorded.values()))))}
    return Measurement(numbers, elapsed, errors, facts), recorded


def measure_progress(
    runtime: Runtime, recorder: Recorder, calls: int, seconds: float
) -> Measurement:
    """Call ``job.progress()`` in a tight loop; the emitter throttles it at the same time."""
    stats = runtime.emitter.stats
    before = stats.appended
    with _running_jobs(runtime, recorder, 1) as [one]:
        push_job(one)
        made = 0
        start = time.perf_counter()
        while made < calls and time.perf_counter() - start < seconds:
            first, made = made, min(made + SLICE_EVENTS, calls)
            for current in range(first + 1, made + 1):
                job.progress(current, calls)
        elapsed = time.perf_counter() - start
        pop_job(one)
    appended = stats.appended - before
    received = read_events(recorder.collect(appended)[one.topic])
    currents = [event.state.progress.current for event in received]
    is_complete = bool(received) and received[-1].terminal and currents[-1] == made
    errors = count_errors([event.offset - 1 for event in received], appended) | DeliveryErrors(
        lost=int(not is_complete),
        disordered=sum(later < earlier for earlier, later in pairwise(currents)),
    )
    return Measurement(made, elapsed, errors, {"events_sent": appended})


@contextlib.contextmanager
def _running_jobs(runtime: Runtime, recorder: Recorder, count: int) -> Iterator[list[Job]]:
    """Begin jobs whose topics are recorded; complete them after the block."""
    ids = [f"{secrets.token_hex(4)}-{place}" for place in range(count)]
    recorder.subscribe([job_topic(ident) for ident in ids])
    running = [begin_job(runtime, ident) for ident in ids]
    runtime.emitter.flush(FLUSH_SECONDS)
    yield running
    for one in running:
        one.end("job_completed")
    runtime.emitter.flush(FLUSH_SECONDS)


def count_recorded_errors(
    recorded: Recorded, expected: dict[str, int], appended: int
) -> DeliveryErrors:
    """Count errors in three ways, and return the worst of each.

    Args:
        recorded: the events that arrived, by topic.
        expected: how many numbers the job of each topic used; its events bear them.
        appended: how many events the backend acknowledged; their offsets are consecutive.
    """
    by_number, by_offset = DeliveryErrors(), DeliveryErrors()
    for topic, bodies in recorded.items():
        events = read_events(bodies)
        numbers = [event.data.n for event in events if event.data.n >= 0]
        by_number += count_errors(numbers, expected[topic])
        by_offset += count_errors([event.offset - 1 for event in events])
    missing = appended - sum(len(bodies) for bodies in recorded.values())
    return by_number | by_offset | DeliveryErrors(lost=max(0, missing))


def read_events(bodies: Sequence[bytes]) -> list[NumberedEvent]:
    """Decode the members that are measured."""
    return [read_event(body) for body in bodies]


def measure_backend(
    progress: RunProgress, backend: str, events: int, rounds: int, seconds: float, lose: int
) -> list[Row]:
    """Measure all rows of one backend in turn, ``rounds`` times.

    Each measurement ends after ``events`` events or ``seconds`` seconds.
    """
    bare: list[Measurement] = []
    one: list[Measurement] = []
    hundred: list[Measurement] = []
    calls: list[Measurement] = []
    with server_url(backend) as url, contextlib.ExitStack() as stack:
        runtime = Runtime(settings_for(backend, url))
        stack.callback(runtime.close)
        recorder = stack.enter_context(running_recorder(backend, url, runtime.backend))
        with progress.step(f"{backend}, warming up"):
            _, recorded = measure_jobs(runtime, recorder, 1, min(events, 1000), seconds, 0)
        [entries] = recorded.values()
        for turn in range(1, rounds + 1):
            with progress.step(f"{backend}, round {turn} of {rounds}"):
                if url is not None and backend != "nats":
                    bare.append(measure_bare(url, entries, events, seconds))
                one.append(measure_jobs(runtime, recorder, 1, events, seconds, lose)[0])
                hundred.append(measure_jobs(runtime, recorder, 100, events, seconds, lose)[0])
                number = events * CALLS_PER_EVENT
                calls.append(measure_progress(runtime, recorder, number, seconds))
    target_one, target_hundred = (TARGET_ONE_JOB, TARGET_HUNDRED_JOBS) if bare else (None, None)
    return [
        *([make_row(backend, "bare XADD", bare)] if bare else []),
        make_row(backend, "one job", one, bare, target_ratio=target_one),
        make_row(backend, "a hundred jobs", hundred, bare, target_ratio=target_hundred),
        make_row(
            backend, "job.progress()", calls, target_microseconds=TARGET_PROGRESS_MICROSECONDS
        ),
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

    Fails if an event is lost, doubled or disordered, or a target is missed.
    """
    if quick:
        events, rounds, seconds = min(events, 1000), 1, min(seconds, 10.0)
    each = seconds / (len(backends) * rounds * ROWS)
    report = Report("publish")
    with RunProgress(len(backends) * (1 + rounds)) as progress:
        for backend in backends:
            report.rows += measure_backend(progress, backend, events, rounds, each, lose)
    sys.exit(report.finish(json_file, quick))


if __name__ == "__main__":
    main()
