"""What each engine costs: appends, the way to a watcher's server, and the memory of a job.

::

    python -m benchmarks.engines --json engines.json

All engines run beside each other on one machine and take turns in every round, so that the ratios
hold although the figures depend on the machine; each figure is that of the best round, because what
else the machine does only ever slows one down. Single servers sync their log to
disk each second, as in production; the replicas of a set agree or follow instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table

from benchmarks import options
from benchmarks.broker import BACKENDS, server_url, server_versions, settings_for
from benchmarks.machine import describe_machine
from benchmarks.output import RunProgress, encode_json, machine_text, make_console
from semantik_realtime.backends.loader import backend_names, load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Cursor, Draft, Event, Outcome, StateChange, encode_body
from semantik_realtime.hookspecs import Backend
from semantik_realtime.testing.servers import ROWS

SQLITE = "sqlite"
ENGINES = (*(name for name in BACKENDS if name != "fakeredis"), SQLITE)
"""The rows of the matrix but the one that is a test double, and the example of a backend."""
BATCH_TOPICS, BATCH_DRAFTS = 10, 10
"""A batch has so many topics, with so many drafts each."""
LATENCY_EVENTS = 150
LATENCY_PAUSE_SECONDS = 0.005
ARRIVAL_SECONDS = 10.0
EVENTS_PER_JOB = 10
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Figures(msgspec.Struct):
    """What one engine costs, in its best round."""

    engine: str
    single_per_second: float
    """Appends a second, one in a call."""
    batch_per_second: float
    """Appends a second, a hundred of ten topics in a call."""
    latency_p50_ms: float
    """From the call of `publish` to the sink."""
    latency_p99_ms: float
    job_kilobytes: float
    """Resident memory of all processes of the engine for a job with `EVENTS_PER_JOB` events."""


class Arrivals:
    """A sink that notes when each event arrives."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}
        """By offset, on the clock of `time.perf_counter`."""

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        now = time.perf_counter()
        for event in events:
            self.at[event.offset] = now

    def interrupted(self, topic: str) -> None:
        raise RuntimeError("the subscription broke during a measurement")

    def gone(self, topic: str) -> None:
        raise RuntimeError("the topic was deleted during a measurement")


class Engine:
    """A backend with its servers, and drafts of new topics."""

    def __init__(self, name: str, backend: Backend, pids: Sequence[int]) -> None:
        self.name = name
        self.backend = backend
        self.pids = pids
        """Of its servers; this process if it has none."""
        self._producer = secrets.token_hex(4)
        self._number = 0

    def drafts(self, jobs: Sequence[str], each: int) -> list[Draft]:
        """Return ``each`` drafts of every job, as `job.progress` makes them."""
        drafts = []
        for job in jobs:
            for current in range(1, each + 1):
                self._number += 1
                state = {
                    "status": "running",
                    "attempt": 1,
                    "started_at": "2026-01-31T09:30:00.000Z",
                    "progress": {"current": current, "total": each, "unit": "files"},
                    "message": "Indexing documents",
                }
                body = encode_body("job_progress", "2026-01-31T09:30:00.000Z", job, state=state)
                draft = Draft(topic=f"job:{job}", type="job_progress", key=job, body=body)
                draft.change, draft.job, draft.owner = StateChange.SET, job, "7"
                draft.producer, draft.number = self._producer, self._number
                drafts.append(draft)
        return drafts

    def publish(self, drafts: Sequence[Draft]) -> None:
        """Append drafts.

        Raises:
            click.ClickException: one was not appended.
        """
        receipts = self.backend.publish(drafts)
        if any(receipt.outcome is not Outcome.APPENDED for receipt in receipts):
            raise click.ClickException(f"{self.name}: an event was not appended")

    def rate(self, jobs: int, each: int, seconds: float) -> float:
        """Return appends a second, with ``each`` drafts of so many jobs in a call."""
        names = [secrets.token_hex(6) for _ in range(jobs)]
        self.publish(self.drafts(names, each))
        appended, spent = 0, 0.0
        while spent < seconds:
            # Made while the clock stands.
            call = self.drafts(names, each)
            begin = time.perf_counter()
            self.publish(call)
            spent += time.perf_counter() - begin
            appended += len(call)
        return appended / spent

    async def latencies(self, events: int) -> list[float]:
        """Return the milliseconds from `publish`, in a thread, to the sink, of each event.

        Raises:
            click.ClickException: one did not arrive.
        """
        job = secrets.token_hex(6)
        sink = Arrivals()
        await self.backend.subscribe(f"job:{job}", sink)
        sent: list[float] = []
        for draft in self.drafts([job], events):
            sent.append(time.perf_counter())
            await asyncio.to_thread(self.publish, [draft])
            await asyncio.sleep(LATENCY_PAUSE_SECONDS)
        until = time.perf_counter() + ARRIVAL_SECONDS
        while len(sink.at) < events:
            if time.perf_counter() > until:
                raise click.ClickException(f"{self.name}: {events - len(sink.at)} events missing")
            await asyncio.sleep(0.01)
        await self.backend.unsubscribe(f"job:{job}")
        return [1000 * (sink.at[offset] - at) for offset, at in enumerate(sent, start=1)]

    def job_kilobytes(self, jobs: int) -> float:
        """Return how much the memory of the servers grows for a new job, in kB."""
        # Connections and scripts have memory of their own.
        self._begin_jobs(BATCH_TOPICS)
        before = resident_bytes(self.pids)
        self._begin_jobs(jobs)
        return (resident_bytes(self.pids) - before) / jobs / 1000

    def _begin_jobs(self, jobs: int) -> None:
        for begin in range(0, jobs, BATCH_TOPICS):
            count = min(BATCH_TOPICS, jobs - begin)
            self.publish(self.drafts([secrets.token_hex(6) for _ in range(count)], EVENTS_PER_JOB))


def resident_bytes(pids: Sequence[int]) -> int:
    """Return the resident memory of processes, together."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * PAGE_BYTES


def children() -> set[int]:
    """Return the processes that this one has started and that still run."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in found.split()}


@contextlib.contextmanager
def running_engine(name: str) -> Iterator[Engine]:
    """Run the servers of an engine, with the variables that it needs."""
    if name == SQLITE:
        with tempfile.TemporaryDirectory() as directory:
            file = f"sqlite:///{directory}/realtime.db"
            backend = load_backend(load_settings(backend=SQLITE, url=file))
            yield Engine(name, backend, [os.getpid()])
            backend.close_writer()
        return
    environment = {key: os.environ.get(key) for key in ROWS[name].environment}
    os.environ.update(ROWS[name].environment)
    before = children()
    try:
        with server_url(name) as url:
            backend = load_backend(settings_for(name, url))
            pids = sorted(children() - before) or [os.getpid()]
            yield Engine(name, backend, pids)
            backend.close_writer()
    finally:
        for key, value in environment.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


async def measure(
    engines: Sequence[Engine], rounds: int, seconds: float, jobs: int, progress: RunProgress
) -> list[Figures]:
    """Measure the engines in turn, ``rounds`` times; the memory once."""
    singles: dict[str, list[float]] = {one.name: [] for one in engines}
    batches: dict[str, list[float]] = {one.name: [] for one in engines}
    latencies: dict[str, list[list[float]]] = {one.name: [] for one in engines}
    memory: dict[str, float] = {}
    for one in engines:
        await one.backend.open()
    # First: a server that has collected garbage grows less.
    for one in engines:
        with progress.step(f"{one.name}, memory of {jobs} jobs"):
            memory[one.name] = one.job_kilobytes(jobs)
    for turn in range(1, rounds + 1):
        for one in engines:
            with progress.step(f"{one.name}, round {turn} of {rounds}"):
                singles[one.name].append(one.rate(1, 1, seconds))
                batches[one.name].append(one.rate(BATCH_TOPICS, BATCH_DRAFTS, seconds))
                latencies[one.name].append(await one.latencies(LATENCY_EVENTS))
    for one in engines:
        await one.backend.close()
    return [
        Figures(
            one.name,
            max(singles[one.name]),
            max(batches[one.name]),
            min(statistics.median(found) for found in latencies[one.name]),
            min(percentile_99(found) for found in latencies[one.name]),
            memory[one.name],
        )
        for one in engines
    ]


def percentile_99(values: Sequence[float]) -> float:
    """Return the value that one in a hundred exceeds.

    >>> percentile_99([float(number) for number in range(200)])
    197.99
    """
    return statistics.quantiles(values, n=100)[98]


def make_table(figures: Sequence[Figures], yardstick: str) -> Table:
    """Return the figures as a table, with the ratios to those of the engine ``yardstick``."""
    table = Table(title=f"Engines; in brackets the ratio to {yardstick}", caption_justify="left")
    [base] = [one for one in figures if one.engine == yardstick] or [figures[0]]
    table.add_column("engine")
    for name in ("one a call /s", "100 a call /s", "p50 ms", "p99 ms", "kB a job"):
        table.add_column(name, justify="right")
    for one in figures:
        pairs = [
            (one.single_per_second, base.single_per_second, ",.0f"),
            (one.batch_per_second, base.batch_per_second, ",.0f"),
            (one.latency_p50_ms, base.latency_p50_ms, ".2f"),
            (one.latency_p99_ms, base.latency_p99_ms, ".2f"),
            (one.job_kilobytes, base.job_kilobytes, ".1f"),
        ]
        cells = [f"{value:{form}} ({value / own:.2f})" for value, own, form in pairs]
        table.add_row(one.engine, *cells)
    return table


@click.command()
@options.names("engines", ENGINES, ENGINES)
@options.number("rounds", 10, 1, "Of each engine, in turn.")
@options.number("jobs", 3000, 1, "Whose memory is measured.")
@options.seconds(0.2, "Of publishing, in each measurement.")
@options.quick
@options.json_file
def main(
    engines: Sequence[str],
    rounds: int,
    jobs: int,
    seconds: float,
    quick: bool,
    json_file: Path | None,
) -> None:
    """Measure each engine: appends, the way to a watcher's server, the memory of a job."""
    if SQLITE in engines and SQLITE not in backend_names():
        print("without sqlite, which is not installed", file=sys.stderr)
        engines = [name for name in engines if name != SQLITE]
    if quick:
        rounds, jobs, seconds = 1, min(jobs, 200), min(seconds, 0.2)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(RunProgress(len(engines) * (rounds + 1)))
        running = [stack.enter_context(running_engine(name)) for name in engines]
        figures = asyncio.run(measure(running, rounds, seconds, jobs, progress))
    machine: Mapping[str, Any] = {**describe_machine(), "servers": server_versions(engines)}
    yardstick = "valkey" if "valkey" in engines else engines[0]
    console = make_console(120)
    console.print(make_table(figures, yardstick))
    console.print(machine_text(machine), highlight=False)
    if json_file is not None:
        report = {"benchmark": "engines", "machine": machine, "rounds": rounds, "rows": figures}
        json_file.write_bytes(encode_json(report))


if __name__ == "__main__":
    main()
