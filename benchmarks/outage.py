"""What an outage of the broker costs a job of the demo and its watcher.

::

    python -m benchmarks.outage --backend valkey --seconds 30 --json outage.json

The same job runs without an outage, with one, and without one again. Each time the demo is
installed anew, and a client watches the job over a WebSocket.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table

from benchmarks import options
from benchmarks.demo_job import PREFIX, Run, installed_demo, run_job, write_documents
from benchmarks.machine import describe_machine
from benchmarks.output import RunProgress, count_text, encode_json, machine_text, make_console
from semantik_realtime.testing.servers import ROWS

TABLE_COLUMNS = 136
TURNS = (False, True, False)
"""Whether the job of each turn has an outage."""


def slowdown(runs: Sequence[Run]) -> float:
    """Return the median time of the jobs with an outage, divided by that of those without."""
    without = [run.job_seconds for run in runs if not run.outage_seconds]
    with_outage = [run.job_seconds for run in runs if run.outage_seconds]
    return round(statistics.median(with_outage) / statistics.median(without), 3)


def show(runs: Sequence[Run], machine: dict[str, Any]) -> None:
    """Print a line for each job, the slowdown of each backend, and the machine."""
    table = Table(title="outage: one job of the demo, followed by one watcher")
    table.add_column("backend")
    for heading in (
        *("outage s", "job s", "degraded s", "live s", "shown", "back", "ends", "events"),
        *("merged", "lost", "doubled", "disordered"),
    ):
        table.add_column(heading, justify="right")
    for run in runs:
        degraded, live = run.degraded_after_seconds, run.live_after_seconds
        table.add_row(
            run.backend,
            f"{run.outage_seconds:g}",
            f"{run.job_seconds:.2f}",
            "" if degraded is None else f"{degraded:.2f}",
            "" if live is None else f"{live:.2f}",
            str(run.shown_while_degraded),
            count_text(run.went_back),
            str(run.ends),
            f"{run.events:,}",
            f"{run.merged:,}",
            *(count_text(number) for number in (run.lost, run.doubled, run.disordered)),
        )
    console = make_console(TABLE_COLUMNS)
    console.print(table)
    for backend in dict.fromkeys(run.backend for run in runs):
        ratio = slowdown([run for run in runs if run.backend == backend])
        console.print(f"{backend}: with the outage the job took {ratio:.3f} of the time without")
    console.print(machine_text(machine), highlight=False)


@click.command()
@click.option(
    "--backend",
    "--backends",
    "backends",
    type=options.Names([name for name, row in ROWS.items() if row.make_server]),
    default="valkey",
    show_default=True,
    help="Whose server is killed; several separated by commas.",
)
@options.seconds(30.0, "How long the server is away.")
@options.number("documents", 500, 4, "Of a job.")
@options.number("kilobytes", 500, 1, "Of a document.")
@options.json_file
def main(
    backends: Sequence[str], seconds: float, documents: int, kilobytes: int, json_file: Path | None
) -> None:
    """Kill the broker in the middle of a job.

    Fails if the watcher lost an event, received one twice or out of order, saw progress go
    back, or did not see exactly one end.
    """
    machine = describe_machine()
    runs: list[Run] = []
    with (
        RunProgress(len(TURNS) * len(backends)) as progress,
        tempfile.TemporaryDirectory(prefix=PREFIX) as directory,
    ):
        texts = Path(directory) / "documents"
        write_documents(texts, documents, kilobytes)
        for backend, has_outage in product(backends, TURNS):
            what = f"{seconds:g} s without the server" if has_outage else "no outage"
            with (
                progress.step(f"{backend}: {what}"),
                installed_demo(backend, texts) as (demo, server),
            ):
                victim = server if has_outage else None
                runs.append(asyncio.run(run_job(demo, backend, documents, victim, seconds)))
    show(runs, machine)
    if json_file is not None:
        rows = [msgspec.to_builtins(run) for run in runs]
        json_file.write_bytes(encode_json({"scenario": "outage", "machine": machine, "rows": rows}))
    sys.exit(0 if all(run.is_clean for run in runs) else 1)


if __name__ == "__main__":
    main()
