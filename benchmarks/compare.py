"""This project beside its peers: one run, one machine, the same bytes, the same clients.

::

    python -m benchmarks.compare --json compare.json --plot compare.svg

Every row counts the events that were lost, doubled or disordered on the way to the clients. In
a row of ours they fail the run; in a peer's they are a result. A missed target is named on the
standard error, and fails the run with --check. `benchmarks/README.md` says what is measured,
and why it is fair.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import click

from benchmarks import options
from benchmarks.broker import BACKENDS, server_versions
from benchmarks.comparison import (
    Row,
    encode,
    make_failure,
    make_row,
    missed_texts,
    passes,
    set_ratios,
    set_targets,
    show,
)
from benchmarks.contender import PEERS, Contender, load_peer
from benchmarks.contenders.ours import Ours
from benchmarks.machine import describe_machine
from benchmarks.measurement import MeasurementFailed
from benchmarks.output import RunProgress, make_console
from benchmarks.scenarios import SCENARIOS, Sizes
from semantik_realtime.errors import ConfigError
from semantik_realtime.testing.servers import ServerMissing

TABLE_COLUMNS = 144
DEFAULTS = Sizes()
INSTALL = "pip install --group benchmarks"


def measure(scenario: str, contender: Contender, sizes: Sizes) -> Row:
    """Return the row of one contender in one scenario, also if it cannot be measured."""
    try:
        measured = SCENARIOS[scenario](contender, sizes)
    except (MeasurementFailed, ServerMissing, ConfigError) as failure:
        return make_failure(scenario, contender, str(failure))
    return make_row(scenario, contender, measured)


def measure_all(
    scenarios: Sequence[str],
    contenders: Sequence[Contender],
    sizes: Sizes,
    progress: RunProgress | None = None,
) -> list[Row]:
    """Measure every contender in every scenario, one after the other, and show the progress."""
    rows = []
    with progress or RunProgress(len(scenarios) * len(contenders)) as progress:
        for scenario in scenarios:
            for contender in contenders:
                with progress.step(f"{scenario}: {contender.name}, {contender.broker}"):
                    rows.append(measure(scenario, contender, sizes))
    return rows


def load_peers(names: Sequence[str]) -> list[Contender]:
    """Return the peers with these names.

    Raises:
        UsageError: one is not installed.
    """
    try:
        return [load_peer(name) for name in names]
    except ImportError as error:
        raise click.UsageError(f"{error}: {INSTALL}") from error


def load_plot() -> ModuleType:
    """Return `benchmarks.plot`, which nothing but ``--plot`` needs.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        return importlib.import_module("benchmarks.plot")
    except ImportError as error:
        raise click.UsageError(f"{error}: {INSTALL}") from error


@click.command()
@options.backends(*BACKENDS)
@options.names("peers", tuple(PEERS), tuple(PEERS))
@options.names("scenarios", tuple(SCENARIOS), tuple(SCENARIOS))
@options.number("sockets", DEFAULTS.sockets, 1, "That watch one topic, in the fan-out.")
@options.number("events", DEFAULTS.events, 1, "The most to publish, for publish and fan-out.")
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
    """Measure ours over every backend, and the peers beside it.

    Fails if an event of ours is lost, doubled or disordered.
    """
    # Before anything is measured: a missing library must not cost a whole run.
    contenders = [*(Ours(backend) for backend in backends), *load_peers(peers)]
    plot = load_plot() if plot_file is not None else None
    sizes = Sizes(sockets=sockets, events=events, seconds=seconds, window=window, lose=lose)
    if quick:
        sizes = sizes.quick()
    machine, settings = describe_machine(), dataclasses.asdict(sizes)
    machine["servers"] = server_versions({contender.broker for contender in contenders})
    rows = measure_all(scenarios, contenders, sizes)
    set_ratios(rows)
    if window >= options.TARGET_WINDOW:
        set_targets(rows)
    show(make_console(TABLE_COLUMNS), machine, settings, rows)
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
