"""What a watched Celery worker costs, beside an unwatched one.

::

    python -m benchmarks.worker --tasks 3000 --json worker.json

Each row is a worker of two processes or threads that runs tasks which take no time, so that the
share of the watching is as large as it can be. The tasks wait in the queue before the clock
starts. The broker and the backend are two servers, so that the processor time of each is read
apart. Peers export nothing: what sending their spans costs is not in the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import msgspec
import redis

from benchmarks import options
from benchmarks.broker import server_url, settings_for
from benchmarks.machine import describe_machine
from benchmarks.measurement import MeasurementFailed
from benchmarks.output import RunProgress
from benchmarks.polling import wait_until
from benchmarks.process_time import tree_seconds
from benchmarks.worker_app import BROKER, WATCH, WATCHES
from benchmarks.worker_report import (
    OURS,
    TARGET_MICROSECONDS,
    UNWATCHED,
    CallRow,
    Round,
    Row,
    make_row,
    report_json,
    show,
)
from semantik_realtime.config import Settings
from semantik_realtime.core.topic import job_topic
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.current import job, pop_job, push_job
from semantik_realtime.worker.job import Job, JobMeta

PACKAGES = {"opentelemetry": "opentelemetry.instrumentation.celery", "sentry": "sentry_sdk"}
"""What a peer needs; without it the peer is left out."""
POOLS = ("prefork", "threads")
CONCURRENCY = 2
QUEUE = "celery"
JOB_EVENTS = 3
"""Queued, started, completed."""
WARM_UP_TASKS = 100
START_SECONDS = 60.0
RUN_SECONDS = 300.0
POLL_SECONDS = 0.02
"""Each look at the queue costs the broker a little, the same for all."""
SETTLE_SECONDS = 0.5
"""What a worker sends after the last task is counted too."""
CALLS, BURST = 20_000, 500


class Servers(msgspec.Struct, frozen=True):
    """Two servers, by URL and process id."""

    broker_url: str
    broker_pid: int
    backend_url: str
    backend_pid: int


@contextlib.contextmanager
def running_servers() -> Iterator[Servers]:
    """Run a broker and a backend that sync their logs to disk each second."""
    with server_url("valkey") as broker, server_url("valkey") as backend:
        assert broker is not None
        assert backend is not None
        pids = [redis.Redis.from_url(url).info("server")["process_id"] for url in (broker, backend)]
        yield Servers(broker, pids[0], backend, pids[1])


@contextlib.contextmanager
def running_worker(pool: str, environment: dict[str, str], log: Path) -> Iterator[int]:
    """Run a worker; yields its process id when it is ready."""
    command = [
        *(sys.executable, "-m", "celery", "-A", "benchmarks.worker_app", "worker"),
        *("--pool", pool, "--concurrency", str(CONCURRENCY), "--loglevel", "info", "-Q", QUEUE),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        *(["-E"] if environment[WATCH] == "celery events" else []),
    ]
    with log.open("wb") as output:
        worker = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:

        def is_ready() -> bool:
            text = log.read_text(errors="replace")
            if worker.poll() is not None:
                raise MeasurementFailed(f"the worker did not start: {text[-2000:]}")
            return " ready." in text

        wait_until(is_ready, START_SECONDS, "the worker is ready")
        yield worker.pid
    finally:
        worker.terminate()
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def run_round(servers: Servers, pool: str, contender: str, tasks: int, directory: Path) -> Round:
    """Start a worker, let it run ``tasks`` tasks, and end it."""
    is_ours = contender.startswith(OURS)
    settings = settings_for(
        "valkey", servers.backend_url, prefix=f"bench-{secrets.token_hex(4)}", mirror=is_ours
    )
    environment = {
        **os.environ,
        WATCH: contender,
        BROKER: servers.broker_url,
        "BENCHMARK_POOL": pool,
        "SEMANTIK_REALTIME_BACKEND": settings.backend,
        "SEMANTIK_REALTIME_URL": servers.backend_url,
        "SEMANTIK_REALTIME_PREFIX": settings.prefix,
        "SEMANTIK_REALTIME_MIRROR": str(is_ours),
    }
    broker = redis.Redis.from_url(servers.broker_url)

    def publish(prefix: str, count: int) -> None:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.worker_app", "prepared", prefix, str(count)],
            env=environment,
            check=True,
        )

    def run_all() -> None:
        broker.rename("prepared", QUEUE)
        wait_until(
            lambda: not broker.exists(QUEUE, "unacked"),
            RUN_SECONDS,
            "the worker has run all tasks",
            poll_seconds=POLL_SECONDS,
        )

    broker.flushall()
    redis.Redis.from_url(servers.backend_url).flushall()
    name = f"{pool}-{contender.replace(' ', '-')}.log"
    with running_worker(pool, environment, directory / name) as pid:
        publish("warm", WARM_UP_TASKS)
        run_all()
        time.sleep(SETTLE_SECONDS)
        pids = servers.broker_pid, servers.backend_pid
        before = [tree_seconds(each) for each in pids]
        publish("task", tasks)
        worker_before = tree_seconds(pid)
        start = time.perf_counter()
        run_all()
        seconds = time.perf_counter() - start
        time.sleep(SETTLE_SECONDS)
        worker_seconds = tree_seconds(pid) - worker_before
        used = [tree_seconds(each) - first for each, first in zip(pids, before, strict=True)]
    lost, doubled = count_events(settings, tasks) if is_ours else (0, 0)
    return Round(tasks, seconds, worker_seconds, used[0], used[1], lost, doubled)


def count_events(settings: Settings, tasks: int) -> tuple[int, int]:
    """Return how many events of the jobs are missing, and how many are too many."""

    async def offsets() -> list[int]:
        runtime = Runtime(settings)
        topics = [job_topic(f"task-{number}") for number in range(tasks)]
        await runtime.backend.open()
        tops = await runtime.backend.tops(topics)
        await runtime.backend.close()
        return [tops[topic].cursor.offset if topic in tops else 0 for topic in topics]

    found = asyncio.run(offsets())
    return (
        sum(max(0, JOB_EVENTS - offset) for offset in found),
        sum(max(0, offset - JOB_EVENTS) for offset in found),
    )


def measure_calls(url: str, calls: int, rounds: int) -> list[CallRow]:
    """Return what a call costs the task's thread, in processor time: the median of the rounds."""
    runtime = Runtime(settings_for("valkey", url))
    running = Job(runtime, JobMeta(secrets.token_hex(4)), 1, is_new=True)
    running.begin()
    push_job(running)
    took: dict[str, list[float]] = {call: [] for call in TARGET_MICROSECONDS}
    try:
        for _ in range(rounds):
            progress = emit = 0.0
            for first in range(0, calls, BURST):
                start = time.thread_time()
                for number in range(first, first + BURST):
                    job.progress(number, calls)
                progress += time.thread_time() - start
                start = time.thread_time()
                for number in range(first, first + BURST):
                    job.emit("file_completed", n=number)
                emit += time.thread_time() - start
                runtime.emitter.flush(10)
            made = -(-calls // BURST) * BURST
            took["job.progress()"].append(progress / made * 1e6)
            took["job.emit()"].append(emit / made * 1e6)
    finally:
        pop_job(running)
        runtime.close()
    return [CallRow(call, round(statistics.median(each), 3)) for call, each in took.items()]


def measure(
    progress: RunProgress,
    pools: Sequence[str],
    contenders: Sequence[str],
    tasks: int,
    rounds: int,
    directory: Path,
) -> list[Row]:
    """Measure the contenders in turn, ``rounds`` times."""
    measured: dict[tuple[str, str], list[Round]] = {}
    with running_servers() as servers:
        for turn in range(1, rounds + 1):
            for pool in pools:
                for contender in contenders:
                    with progress.step(f"{pool}, {contender}, round {turn} of {rounds}"):
                        one = run_round(servers, pool, contender, tasks, directory)
                        measured.setdefault((pool, contender), []).append(one)
    return [
        make_row(pool, contender, each, measured[pool, UNWATCHED])
        for (pool, contender), each in sorted(
            measured.items(), key=lambda item: pools.index(item[0][0])
        )
    ]


def installed(contenders: Sequence[str]) -> list[str]:
    """Return the contenders that are installed, the unwatched one first; name the others."""
    kept = [UNWATCHED]
    for name in contenders:
        if name == UNWATCHED:
            continue
        try:
            is_there = name not in PACKAGES or find_spec(PACKAGES[name]) is not None
        except ModuleNotFoundError:
            is_there = False
        if is_there:
            kept.append(name)
        else:
            print(f"worker: {name} is left out: {PACKAGES[name]} is missing", file=sys.stderr)
    return kept


# Names with a comma would be two.
SHORT_NAMES = {name.replace(", ", "-").replace(" ", "-"): name for name in WATCHES}


@click.command()
@options.number("tasks", 3000, 10, "Of each worker.")
@options.number("rounds", 5, 1, "Of each row.")
@options.names("pools", POOLS, POOLS)
@options.names("contenders", tuple(SHORT_NAMES), tuple(SHORT_NAMES))
@options.quick
@options.json_file
@click.option("--logs", type=click.Path(path_type=Path), help="A directory for the workers' logs.")
def main(
    tasks: int,
    rounds: int,
    pools: Sequence[str],
    contenders: Sequence[str],
    quick: bool,
    json_file: Path | None,
    logs: Path | None,
) -> None:
    """Run tasks that take no time in watched workers and in an unwatched one.

    Fails if an event of ours is lost or doubled, or a target is missed.
    """
    calls = CALLS
    if quick:
        tasks, rounds, calls = min(tasks, 200), 1, 2 * BURST
    machine = describe_machine()
    names = installed([SHORT_NAMES[name] for name in contenders])
    with contextlib.ExitStack() as stack:
        directory = logs or Path(stack.enter_context(TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        progress = stack.enter_context(RunProgress(len(names) * len(pools) * rounds + 1))
        rows = measure(progress, pools, names, tasks, rounds, directory)
        with progress.step("calls in a task"), running_servers() as servers:
            call_rows = measure_calls(servers.backend_url, calls, rounds)
    show(rows, call_rows, machine)
    if json_file is not None:
        json_file.write_bytes(report_json(rows, call_rows, machine))
    missed = [f"{row.contender} with {row.pool}: {text}" for row in rows for text in row.missed]
    missed += [f"{row.call}: {text}" for row in call_rows for text in row.missed]
    is_clean = not any(row.lost or row.doubled for row in rows)
    if not quick:
        for text in missed:
            print(f"worker: {text}", file=sys.stderr)
    sys.exit(0 if is_clean and (quick or not missed) else 1)


if __name__ == "__main__":
    main()
