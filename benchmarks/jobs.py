"""What an event costs when many jobs are watched, beside a bare loop without a log.

::

    python -m benchmarks.jobs --backends valkey,nats --jobs 100,1000,10000 --json jobs.json

Each job has its own watchers, and the jobs emit in turn, at a steady rate all together. The
yardstick is what one writes by hand: one pub/sub connection a process and a dict of sockets
(`benchmarks.contenders.bare_loop`). Processor times are those of the whole process, the burst's
seconds through, so what is done periodically for all jobs is counted too.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from benchmarks import options
from benchmarks.beside_bare import BareReport, Row, Target, make_rows, targets_of
from benchmarks.broker import PROGRAMS, running_server, server_versions
from benchmarks.burst import Pace
from benchmarks.contender import OURS, Contender, load_bare_loop, load_peer
from benchmarks.contenders.ours import Ours
from benchmarks.harness import run_burst
from benchmarks.job_clients import follow_jobs
from benchmarks.measurement import Measurement, MeasurementFailed
from benchmarks.output import RunProgress
from semantik_realtime.testing.servers import ServerMissing

PEERS = ("socketio", "broadcaster")
SPARE_FILES = 200
"""What a process has open beside its sockets."""
COLUMNS = {
    "server_us": "web server µs",
    "broker_us": "broker µs",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "join_ms": "join ms",
    "join_cpu_ms": "join CPU ms",
}
MOST_GROWTH = {"server_us": 1.15, "join_ms": 1.15}
"""From the fewest to the most jobs."""
MOST_RATIO = {"server_us": 1.25, "p50_ms": 1.5, "p99_ms": 4.0, "join_ms": 1.6}
"""To the bare loop with as many jobs."""
MOST_BROKER_RATIO = 2.2
"""Redis' processor time to that of a bare PUBLISH, at one event a call."""


def targets(rows: Sequence[Row], watchers: int) -> list[Target]:
    """Return the targets of a run; there are none for more than one watcher a job."""
    if watchers != 1:
        return []
    most = max((row.jobs for row in rows), default=0)
    fewest = min((row.jobs for row in rows), default=0)
    last = [row for row in rows if row.jobs == most > fewest]
    redis = [row for row in rows if row.broker != "nats"]
    broker = {"broker_us": MOST_BROKER_RATIO}
    return [
        *targets_of(last, "growth", MOST_GROWTH, f"{{}} beside that of {fewest:,} jobs"),
        *targets_of(rows, "ratios", MOST_RATIO, "{} beside the bare loop's"),
        *targets_of(redis, "ratios", broker, "{} beside a bare PUBLISH"),
    ]


def check_files(sockets: int) -> None:
    """Check that a process may have so many sockets.

    Raises:
        UsageError: it may not.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sockets + SPARE_FILES > limit:
        raise click.UsageError(
            f"{sockets:,} sockets need `ulimit -n {sockets + SPARE_FILES}`; it is {limit}"
        )


def load_contenders(backends: Sequence[str], peers: Sequence[str]) -> list[Contender]:
    """Return the bare loop, ours with each backend, and the peers.

    Raises:
        UsageError: a peer is not installed.
    """
    try:
        return [load_bare_loop(), *(Ours(backend) for backend in backends), *map(load_peer, peers)]
    except ImportError as error:
        raise click.UsageError(f"{error}: pip install --group benchmarks") from error


def measure(
    contender: Contender, jobs: int, pace: Pace, clients: Callable[..., None], count: int
) -> Measurement | str:
    """Return what `run_burst` measures with ``jobs`` jobs, or why it measures nothing."""
    try:
        with running_server(contender.broker) as broker:
            assert broker.process is not None
            pid = broker.process.pid
            return run_burst(contender, broker.url, pace, clients, count, jobs=jobs, broker_pid=pid)
    except (MeasurementFailed, ServerMissing) as failure:
        return str(failure)


def measure_in_turn(
    contenders: Sequence[Contender],
    jobs: Sequence[int],
    rounds: int,
    measure_one: Callable[[Contender, int], Measurement | str],
) -> dict[tuple[str, str, int], list[Measurement | str]]:
    """Measure every contender with each number of jobs, in each round, and show the progress."""
    measured: dict[tuple[str, str, int], list[Measurement | str]] = {}
    with RunProgress(rounds * len(jobs) * len(contenders)) as progress:
        for turn in range(1, rounds + 1):
            for count in jobs:
                for contender in contenders:
                    key = contender.name, contender.broker, count
                    with progress.step(f"{', '.join(map(str, key))} jobs, round {turn}"):
                        measured.setdefault(key, []).append(measure_one(contender, count))
    return measured


@click.command()
@options.names("backends", tuple(PROGRAMS), ("valkey", "nats"), "--backend")
@options.names("peers", PEERS, PEERS)
@options.numbers("jobs", (100, 1_000, 10_000), "That are watched; separated by commas.")
@options.number("watchers", 1, 1, "Of each job.")
@options.number("rate", 1_000, 1, "Events per second, of all jobs together.")
@options.number("rounds", 3, 1, "Of each row.")
@options.seconds(10.0, "Of publishing, in each round of each row.")
@options.quick
@options.check
@options.lose
@options.json_file
def main(
    backends: Sequence[str],
    peers: Sequence[str],
    jobs: Sequence[int],
    watchers: int,
    rate: int,
    rounds: int,
    seconds: float,
    quick: bool,
    check: bool,
    lose: int,
    json_file: Path | None,
) -> None:
    """Publish to many jobs, each with its own watchers.

    Fails if an event of ours is lost, doubled or disordered; with --check also if a target is
    missed.
    """
    if quick:
        jobs, rounds, seconds = [min(10, *jobs)], 1, min(seconds, 1.0)
    check_files(max(jobs) * watchers)
    contenders = load_contenders(backends, peers)
    pace = Pace(int(rate * seconds), 2 * seconds, rate=rate, lose=lose)
    settings = {"watchers": watchers, "rate": rate, "seconds": seconds, "rounds": rounds}
    report = BareReport("jobs (beside the bare loop)", COLUMNS, settings)
    report.machine["servers"] = server_versions({contender.broker for contender in contenders})
    measured = measure_in_turn(
        contenders,
        jobs,
        rounds,
        lambda contender, count: measure(contender, count, pace, follow_jobs, watchers),
    )
    report.rows = make_rows(measured, OURS)
    report.targets = targets(report.rows, watchers)
    sys.exit(report.finish(json_file, check=check))


if __name__ == "__main__":
    main()
