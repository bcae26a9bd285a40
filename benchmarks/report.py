"""The rows of `publish` and `fanout`: a table for people, JSON for machines."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.measurement import DeliveryErrors, Measurement
from benchmarks.output import count_text, encode_json, machine_text, make_console

TABLE_COLUMNS = 110


class Row(msgspec.Struct):
    """One line of the report: the median of its rounds, and the sum of their errors."""

    backend: str
    name: str
    events_per_second: float
    ratio: float | None
    """To the yardstick of the same round, the median of the rounds; None without a yardstick."""
    target_ratio: float | None
    """The least ratio that meets the target."""
    microseconds_per_event: float
    target_microseconds: float | None
    """The target is less than this."""
    lost: int
    doubled: int
    disordered: int
    rounds: int
    events: int
    """Of all rounds."""
    facts: dict[str, Any]
    """Of the last round."""

    @property
    def is_met(self) -> bool | None:
        """Whether the row meets its target; None without one."""
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
    """Sum up the rounds of one row; ``yardstick`` are the rounds it is compared with, in order."""
    errors = sum((one.errors for one in rounds), DeliveryErrors())
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
        lost=errors.lost,
        doubled=errors.doubled,
        disordered=errors.disordered,
        rounds=len(rounds),
        events=sum(one.events for one in rounds),
        facts=rounds[-1].facts,
    )


class Report:
    """The rows of one run, and the machine it ran on, described when the run began."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.machine = describe_machine()
        self.rows: list[Row] = []
        """Appended to by the command, in the order of the table."""

    @property
    def is_clean(self) -> bool:
        """Whether there is a row, and none lost, doubled or disordered an event."""
        return bool(self.rows) and not any(
            row.lost or row.doubled or row.disordered for row in self.rows
        )

    @property
    def missed(self) -> list[Row]:
        """The rows that miss their target."""
        return [row for row in self.rows if row.is_met is False]

    def encode(self) -> bytes:
        """Return the report as JSON; the facts of a row become members of it."""
        rows = []
        for row in self.rows:
            members = msgspec.to_builtins(row)
            facts = members.pop("facts")
            rows.append({**members, "is_met": row.is_met, **facts})
        return encode_json({"scenario": self.scenario, "machine": self.machine, "rows": rows})

    def show(self) -> None:
        """Print the table and the machine."""
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
                _target_text(row),
                *(count_text(number) for number in (row.lost, row.doubled, row.disordered)),
            )
        console = make_console(TABLE_COLUMNS)
        console.print(table)
        console.print(machine_text(self.machine), highlight=False)

    def finish(self, json_file: Path | None, quick: bool) -> int:
        """Print the table, write the JSON, and return the exit code of the run.

        A ``quick`` run measures too little to fail because of a missed target.
        """
        self.show()
        if json_file is not None:
            json_file.write_bytes(self.encode())
        if quick:
            return 0 if self.is_clean else 1
        for row in self.missed:
            print(f"{self.scenario}: {_missed_text(row)}", file=sys.stderr)
        return 0 if self.is_clean and not self.missed else 1


def _target_text(row: Row) -> str:
    if row.target_ratio is not None:
        target, missed = f"≥ {row.target_ratio:g}", f"below target {row.target_ratio:g}"
    elif row.target_microseconds is not None:
        target = f"< {row.target_microseconds:g} µs"
        missed = f"above target {row.target_microseconds:g} µs"
    else:
        return ""
    return f"[bold red]{missed}[/]" if row.is_met is False else target


def _missed_text(row: Row) -> str:
    where = f"{row.name} with {row.backend}"
    if row.target_ratio is not None:
        return f"{where} reaches {row.ratio:g} of its yardstick; the target is {row.target_ratio:g}"
    actual, target = row.microseconds_per_event, row.target_microseconds
    return f"{where} takes {actual:g} µs per event; the target is less than {target:g} µs"
