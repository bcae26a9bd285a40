"""This project beside its peers: one run, one machine, the same bytes, the same clients.

::

    python -m benchmarks.compare --json compare.json --plot compare.svg

Every row counts what was lost, doubled and disordered on the way to the
clients. Any of it in a row of ours fails the run; a peer's is reported. A
missed target is named on the standard error, and fails the run with --check.
`benchmarks/README.md` says what is measured, and how it is fair.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import options
from benchmarks.broker import BACKENDS, server_versions
from benchmarks.comparison import (
    Row,
    compare,
    encode,
    make_failure,
    make_row,
    missed_texts,
    passes,
    set_targets,
    show,
)
from benchmarks.contender import PEERS, Contender, load_peer
from benchmarks.contenders.ours import Ours
from benchmarks.machine import describe_machine
from benchmarks.scenarios import SCENARIOS, Sizes
from benchmarks.stage import Failed
from semantik_realtime.errors import ConfigError
from semantik_realtime.testing.servers import ServerMissing

TABLE_COLUMNS = 144
DEFAULTS = Sizes()


def measure(scenario: str, contender: Contender, sizes: Sizes) -> Row:
    """One contender in one scenario; also if it fails."""
    try:
        measured = SCENARIOS[scenario](contender, sizes)
    except (Failed, ServerMissing, ConfigError) as failure:
        return make_failure(scenario, contender, str(failure))
    return make_row(scenario, contender, measured)


def load_peers(names: Sequence[str]) -> list[Contender]:
    """The peers with these names.

    Raises:
        UsageError: one is not installed.
    """
    try:
        return [load_peer(name) for name in names]
    except ImportError as error:
        raise click.UsageError(f"{error}: pip install --group benchmarks") from error


def load_plot() -> ModuleType:
    """Return `benchmarks.plot`, which nothing but ``--plot`` needs.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        return importlib.import_module("benchmarks.plot")
    except ImportError as error:
        raise click.UsageError(f"{error}: pip install --group benchmarks") from error


@click.command()
@options.backends(*BACKENDS)
@options.names("peers", tuple(PEERS), tuple(PEERS))
@options.names("scenarios", tuple(SCENARIOS), tuple(SCENARIOS))
@options.number("sockets", DEFAULTS.sockets, 1, "That watch one topic, where fan-out is measured.")
@options.number("events", DEFAULTS.events, 1, "Published at most, for publish and fan-out.")
@options.seconds(DEFAULTS.seconds, "Of publishing, in each row.")
@options.window
@options.quick
@options.lose
@options.json_file
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The SVG file for a picture, x.svg; x-dark.svg is written for dark pages.",
)
@click.option("--check", is_flag=True, help="Fail also if a target beside a peer is missed.")
def main(
    backends: Sequence[str],
    peers: Sequence[str],
    scenarios: Sequence[str],
    sockets: int,
    events: int,
    seconds: float,
    window: int,
    quick: bool,
    lose: int,
    json_file: Path | None,
    plot_file: Path | None,
    check: bool,
) -> None:
    """Measure ours over every backend, and the peers beside it. Fails if ours loses an event."""
    sizes = Sizes(sockets=sockets, events=events, seconds=seconds, window=window, lose=lose)
    if quick:
        sizes = sizes.quick()
    contenders: list[Contender] = [Ours(backend) for backend in backends]
    contenders += load_peers(peers)
    plot = load_plot() if plot_file is not None else None
    machine, settings = describe_machine(), dataclasses.asdict(sizes)
    machine["servers"] = server_versions({contender.broker for contender in contenders})
    rows: list[Row] = []
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=len(scenarios) * len(contenders))
        for scenario in scenarios:
            for contender in contenders:
                progress.update(
                    task, description=f"{scenario}: {contender.name}, {contender.broker}"
                )
                rows.append(measure(scenario, contender, sizes))
                progress.advance(task)
    compare(rows)
    if window >= options.TARGET_WINDOW:
        set_targets(rows)
    # Not narrower than the tables where nobody looks at a terminal.
    show(Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS), machine, settings, rows)
    if json_file is not None:
        json_file.write_bytes(encode(machine, settings, rows))
    if plot is not None:
        plot.write_pictures(plot_file, machine, settings, rows)
    if check or not quick:
        for text in missed_texts(rows):
            print(text, file=sys.stderr)
    sys.exit(0 if passes(rows, check) else 1)


if __name__ == "__main__":
    main()
