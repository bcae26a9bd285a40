"""The rows of `benchmarks.jobs` and `benchmarks.connections`, beside those of a bare loop."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.measurement import DeliveryErrors, Measurement
from benchmarks.output import count_text, encode_json, machine_text, make_console

TABLE_COLUMNS = 150
BARE = "bare loop"


class Row(msgspec.Struct, frozen=True):
    """One contender with some jobs: the medians of its rounds, and the sum of their errors."""

    contender: str
    broker: str
    is_ours: bool
    jobs: int
    figures: dict[str, float] = {}
    """By name; the unit is the end of the name. Absent is what could not be measured."""
    ratios: dict[str, float] = {}
    """Of each figure to that of the bare loop with as many jobs in the same round, the median of
    the rounds; empty without one."""
    growth: dict[str, float] = {}
    """The same to the contender's own figure with the fewest jobs of the run."""
    rounds: list[dict[str, float]] = []
    """The figures of each round."""
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    failure: str | None = None
    """Why there is no measurement."""


class Target(msgspec.Struct, frozen=True):
    """A figure, ratio or growth that must not be above a value."""

    contender: str
    broker: str
    jobs: int
    what: str
    value: float
    most: float

    @property
    def is_met(self) -> bool:
        """Whether the value is not above the target."""
        return self.value <= self.most

    def text(self) -> str:
        """Return a line for people."""
        verdict = "met" if self.is_met else "missed"
        return (
            f"{verdict}: {self.contender} with {self.broker}, {self.jobs:,} jobs: {self.what} "
            f"is {self.value:.3g}, the target is at most {self.most:g}"
        )


Rounds = Mapping[tuple[str, str, int], Sequence[Measurement | str]]
"""What each round measured, or why it did not, by contender, broker and jobs."""


def make_rows(rounds: Rounds, ours: str) -> list[Row]:
    """Sum up the rounds; those with the same place were made in turn. ``ours`` is a contender."""
    rows = []
    for (contender, broker, jobs), measured in rounds.items():
        yardstick = BARE, jobs
        failures = [one for one in measured if isinstance(one, str)]
        fewest = min(other for name, at, other in rounds if (name, at) == (contender, broker))
        own = _figures(measured)
        done = [one for one in measured if isinstance(one, Measurement)]
        errors = sum((one.errors for one in done), DeliveryErrors())
        bare = next((many for (name, _, at), many in rounds.items() if (name, at) == yardstick), [])
        rows.append(
            Row(
                contender=contender,
                broker=broker,
                is_ours=contender == ours,
                jobs=jobs,
                figures=_medians(own),
                ratios=_medians(_divide(own, _figures(bare))),
                growth=_medians(_divide(own, _figures(rounds[contender, broker, fewest]))),
                rounds=own,
                lost=errors.lost,
                doubled=errors.doubled,
                disordered=errors.disordered,
                failure=failures[0] if failures else None,
            )
        )
    return rows


def targets_of(
    rows: Iterable[Row], part: str, most: Mapping[str, float | None], what: str
) -> list[Target]:
    """Return the targets of rows of ours.

    Args:
        rows: some of the report's.
        part: "figures", "ratios" or "growth".
        most: the most of each figure; None: no target.
        what: for people; ``{}`` is the figure's name.
    """
    return [
        Target(row.contender, row.broker, row.jobs, what.format(name), values[name], limit)
        for row in rows
        if row.is_ours
        for values in (getattr(row, part),)
        for name, limit in most.items()
        if limit is not None and name in values
    ]


class BareReport(msgspec.Struct):
    """The rows and targets of one run."""

    scenario: str
    columns: Mapping[str, str]
    """The heading of each figure that the table has, by the figure's name."""
    settings: Mapping[str, Any]
    machine: dict[str, Any] = msgspec.field(default_factory=describe_machine)
    rows: list[Row] = []
    targets: list[Target] = []

    def finish(self, json_file: Path | None, *, check: bool) -> int:
        """Print everything and write the JSON. Return the exit code.

        It is 1 if a row of ours has errors or was not measured, or with ``check`` if a target is
        missed.
        """
        console = make_console(TABLE_COLUMNS)
        console.print(self._table())
        console.print(machine_text(self.machine), highlight=False)
        texts = (f"{name.replace('_', ' ')} {value}" for name, value in self.settings.items())
        console.print(", ".join(texts), highlight=False)
        for target in self.targets:
            print(target.text())
        if json_file is not None:
            json_file.write_bytes(self._json())
        bad = [row for row in self.rows if row.is_ours and not _is_clean(row)]
        for row in bad:
            print(f"{row.contender} with {row.broker}: {_fault(row)}", file=sys.stderr)
        missed = check and any(not target.is_met for target in self.targets)
        return 1 if bad or missed or not self.rows else 0

    def _table(self) -> Table:
        table = Table(title=self.scenario, title_justify="left")
        table.add_column("contender")
        table.add_column("broker")
        for heading in ("jobs", *self.columns.values(), "lost", "doubled", "disordered"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            if row.failure is not None:
                table.add_row(row.contender, row.broker, f"{row.jobs:,}", f"[red]{row.failure}[/]")
                continue
            table.add_row(
                f"[bold]{row.contender}[/]" if row.is_ours else row.contender,
                row.broker,
                f"{row.jobs:,}",
                *(_cell(row, name) for name in self.columns),
                *(count_text(count) for count in (row.lost, row.doubled, row.disordered)),
            )
        return table

    def _json(self) -> bytes:
        return encode_json(
            {
                "scenario": self.scenario,
                "machine": self.machine,
                "settings": self.settings,
                "rows": msgspec.to_builtins(self.rows),
                "targets": [
                    {**msgspec.to_builtins(target), "is_met": target.is_met}
                    for target in self.targets
                ],
            }
        )


def _figures(measured: Sequence[Measurement | str]) -> list[dict[str, float]]:
    """Return the figures of each round, none of a round that failed."""
    return [
        {
            name: round(value, 3)
            for name, value in one.facts.items()
            # What could not be measured is not a number, and not equal to itself.
            if isinstance(value, float) and value == value
        }
        if isinstance(one, Measurement)
        else {}
        for one in measured
    ]


def _divide(
    over: Sequence[dict[str, float]], under: Sequence[dict[str, float]]
) -> list[dict[str, float]]:
    """Divide the figures of each round by those of the other contender in the same round."""
    return [
        {name: one[name] / other[name] for name in one if other.get(name)}
        for one, other in zip(over, under, strict=False)
    ]


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name: None for one in rounds for name in one}
    return {
        name: round(statistics.median(one[name] for one in rounds if name in one), 3)
        for name in names
    }


def _is_clean(row: Row) -> bool:
    return row.failure is None and not (row.lost or row.doubled or row.disordered)


def _fault(row: Row) -> str:
    return row.failure or (
        f"lost {row.lost}, doubled {row.doubled}, disordered {row.disordered} events"
    )


def _cell(row: Row, name: str) -> str:
    if name not in row.figures:
        return "–"
    ratio = f" ({row.ratios[name]:.2f})" if name in row.ratios and row.contender != BARE else ""
    return f"{row.figures[name]:.3g}{ratio}"
