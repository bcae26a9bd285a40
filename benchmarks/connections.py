"""What connections cost that get no events, and what a crowd costs that returns.

::

    python -m benchmarks.connections --backends valkey,nats --watchers 5000 --json connections.json

Each connection watches a job of its own. The yardstick is the same as that of `benchmarks.jobs`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks import options
from benchmarks.beside_bare import BareReport, Row, Target, make_rows, targets_of
from benchmarks.broker import PROGRAMS, server_versions
from benchmarks.burst import Pace
from benchmarks.contender import OURS
from benchmarks.job_clients import idle_and_return
from benchmarks.jobs import PEERS, check_files, load_contenders, measure, measure_in_turn

COLUMNS = {
    "join_ms": "join ms",
    "join_cpu_ms": "join CPU ms",
    "memory_kib": "KiB each",
    "server_idle_percent": "idle %",
    "broker_idle_percent": "broker idle %",
    "crowd_ms": "crowd ms each",
    "crowd_cpu_ms": "crowd CPU ms",
}
MOST_RATIO = {"join_ms": 1.6, "memory_kib": 1.2}
"""To the bare loop."""
MOST_IDLE_PERCENT = {"nats": 6.0, "redis": 3.0, "valkey": 3.0}
"""Of a core, with `IDLE_WATCHERS` that get nothing."""
IDLE_WATCHERS = 5_000


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return the targets of a run. Those of the idle processor time are for `IDLE_WATCHERS`."""
    idle = [row for row in rows if row.jobs == IDLE_WATCHERS]
    return [
        *targets_of(rows, "ratios", MOST_RATIO, "{} beside the bare loop's"),
        *(
            target
            for broker, most in MOST_IDLE_PERCENT.items()
            for target in targets_of(
                [row for row in idle if row.broker == broker],
                "figures",
                {"server_idle_percent": most},
                "{}",
            )
        ),
    ]


@click.command()
@options.names("backends", tuple(PROGRAMS), ("valkey", "nats"), "--backend")
@options.names("peers", PEERS, ())
@options.numbers("watchers", (IDLE_WATCHERS,), "Connections; separated by commas.")
@options.number("returning", 2_000, 1, "Connections that are lost and come back at once.")
@options.number("rounds", 3, 1, "Of each row.")
@options.seconds(30.0, "Without an event, in each round of each row.")
@options.quick
@options.check
@options.json_file
def main(
    backends: Sequence[str],
    peers: Sequence[str],
    watchers: Sequence[int],
    returning: int,
    rounds: int,
    seconds: float,
    quick: bool,
    check: bool,
    json_file: Path | None,
) -> None:
    """Connect, wait without an event, and let a crowd come back.

    Fails if a contender of ours cannot be measured; with --check also if a target is missed.
    """
    if quick:
        watchers, rounds, seconds = [min(20, *watchers)], 1, min(seconds, 0.2)
    check_files(max(watchers))
    contenders = load_contenders(backends, peers)
    settings = {"returning": returning, "seconds": seconds, "rounds": rounds}
    report = BareReport("connections (beside the bare loop)", COLUMNS, settings)
    report.machine["servers"] = server_versions({contender.broker for contender in contenders})
    pace = Pace(0, seconds)
    measured = measure_in_turn(
        contenders,
        watchers,
        rounds,
        lambda contender, count: measure(
            contender, count, pace, idle_and_return, min(returning, count)
        ),
    )
    report.rows = make_rows(measured, OURS)
    report.targets = targets(report.rows)
    sys.exit(report.finish(json_file, check=check))


if __name__ == "__main__":
    main()
