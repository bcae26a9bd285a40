"""Figures for people, as a table, and for machines, as JSON."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.census import Census
from benchmarks.machine import describe_machine


class Measurement(msgspec.Struct):
    """One round of one row."""

    events: int
    seconds: float
    census: Census
    facts: dict[str, Any] = {}
    """What else was seen, by the names it has in the JSON."""

    @property
    def events_per_second(self) -> float:
        """The rate of this round."""
        return self.events / self.seconds


class Row(msgspec.Struct):
    """One line of the report: the median of its rounds, and all that went wrong in any of them."""

    backend: str
    name: str
    events_per_second: float
    ratio: float | None
    """To the yardstick of the same round, the median of the rounds; None without a yardstick."""
    target_ratio: float | None
    microseconds_per_event: float
    target_microseconds: float | None
    lost: int
    doubled: int
    disordered: int
    rounds: int
    events: int
    """Of all rounds."""
    facts: dict[str, Any]

    @property
    def is_met(self) -> bool | None:
        """Whether it reaches its target; None without one."""
        if self.target_ratio is not None and self.ratio is not None:
            return self.ratio >= self.target_ratio
        if self.target_microseconds is not None:
            return self.microseconds_per_event < self.target_microseconds
        return None


def make_row(
    backend: str,
    name: str,
    rounds: Sequence[Measurement],
    yardstick: Sequence[Measurement] = (),
    *,
    target_ratio: float | None = None,
    target_microseconds: float | None = None,
) -> Row:
    """Sum up the rounds of one row; ``yardstick`` are those of the row it is compared with."""
    census = sum((one.census for one in rounds), Census())
    ratios = [
        one.events_per_second / bare.events_per_second
        for one, bare in zip(rounds, yardstick, strict=False)
    ]
    rate = statistics.median(one.events_per_second for one in rounds)
    return Row(
        backend=backend,
        name=name,
        events_per_second=round(rate, 1),
        ratio=round(statistics.median(ratios), 3) if ratios else None,
        target_ratio=target_ratio,
        microseconds_per_event=round(1e6 / rate, 3),
        target_microseconds=target_microseconds,
        lost=census.lost,
        doubled=census.doubled,
        disordered=census.disordered,
        rounds=len(rounds),
        events=sum(one.events for one in rounds),
        facts=rounds[-1].facts,
    )


class Report:
    """The rows of one run, with its progress shown on the standard error."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.machine = describe_machine()
        self.rows: list[Row] = []
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(scenario)

    def __enter__(self) -> Report:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def says(self, what: str) -> None:
        """Show what is being measured now."""
        self._progress.update(self._task, description=f"{self.scenario}: {what}")

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, doubled or out of order, and something was measured."""
        return bool(self.rows) and not any(
            row.lost or row.doubled or row.disordered for row in self.rows
        )

    @property
    def missed(self) -> list[Row]:
        """The rows that do not reach their target."""
        return [row for row in self.rows if row.is_met is False]

    def encode(self) -> bytes:
        """The report as JSON; the facts of a row are members of it."""
        rows = []
        for row in self.rows:
            members = msgspec.to_builtins(row)
            facts = members.pop("facts")
            rows.append({**members, "is_met": row.is_met, **facts})
        return msgspec.json.format(
            msgspec.json.encode({"scenario": self.scenario, "machine": self.machine, "rows": rows})
        )

    def show(self) -> None:
        """Print the table, and what it was measured on."""
        table = Table(title=f"{self.scenario} (median of the rounds)")
        table.add_column("backend")
        table.add_column("row")
        for heading in ("events/s", "µs/event", "ratio", "target", "lost", "doubled", "disordered"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(
                row.backend,
                row.name,
                f"{row.events_per_second:,.0f}",
                f"{row.microseconds_per_event:.2f}",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                _target(row),
                *(count_text(number) for number in (row.lost, row.doubled, row.disordered)),
            )
        # Not narrower than the table where nobody looks at a terminal.
        console = Console(width=None if sys.stdout.isatty() else 110)
        console.print(table)
        console.print(machine_text(self.machine), highlight=False)

    def finish(self, json_file: Path | None, quick: bool) -> int:
        """Show the table and write the JSON; the exit code of the run.

        A quick run measures too little to be held to the targets.
        """
        self.show()
        if json_file is not None:
            json_file.write_bytes(self.encode())
        if quick:
            return 0 if self.is_clean else 1
        for row in self.missed:
            print(f"{self.scenario}: {_missed_text(row)}", file=sys.stderr)
        return 0 if self.is_clean and not self.missed else 1


def machine_text(machine: Mapping[str, Any]) -> str:
    """What it was measured on: a line on the machine, and one on what ran there."""
    servers = {f"{name}-server": version for name, version in machine.get("servers", {}).items()}
    versions = {**machine["versions"], **servers}
    web = machine["web_server"]
    return (
        f"{machine['cpu_count']} × {machine['cpu']}, {machine['system']}, "
        f"{machine['python']}, load {machine['load_average']}\n"
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; web servers: {web['loop']}, {web['websockets']}"
    )


def count_text(number: int) -> str:
    """How many events went astray, for a table."""
    return "0" if number == 0 else f"[bold red]{number:,}[/]"


def _target(row: Row) -> str:
    if row.target_ratio is not None:
        wanted, missed = f"≥ {row.target_ratio:g}", f"below target {row.target_ratio:g}"
    elif row.target_microseconds is not None:
        wanted = f"< {row.target_microseconds:g} µs"
        missed = f"above target {row.target_microseconds:g} µs"
    else:
        return ""
    return f"[bold red]{missed}[/]" if row.is_met is False else wanted


def _missed_text(row: Row) -> str:
    where = f"{row.name} with {row.backend}"
    if row.target_ratio is not None:
        return f"{where} is at {row.ratio:g} of its yardstick, the target is {row.target_ratio:g}."
    took, target = row.microseconds_per_event, row.target_microseconds
    return f"{where} takes {took:g} µs an event, the target is less than {target:g} µs."
