"""The rows of `benchmarks.worker`: their medians, targets, table and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from rich.table import Table

from benchmarks.output import count_text, encode_json, machine_text, make_console

TABLE_COLUMNS = 130
UNWATCHED, OURS = "unwatched", "semantik-realtime"
TARGET_CPU, TARGET_RATE = 1.10, 0.95
"""Of the unwatched worker."""
TARGET_SERVER = 1.8
"""The backend's processor time for a job, to the broker's for the task's messages."""
TARGET_MICROSECONDS = {"job.progress()": 0.2, "job.emit()": 5.0}


class Round(msgspec.Struct, frozen=True):
    """One worker that has run all tasks."""

    tasks: int
    seconds: float
    worker_seconds: float
    """Processor time of the worker and its pool."""
    broker_seconds: float
    backend_seconds: float
    """Both from before the tasks were published."""
    lost: int = 0
    """Events that the backend does not have."""
    doubled: int = 0


class Row(msgspec.Struct, frozen=True):
    """The median of a contender's rounds. Ratios are to the unwatched worker of the same round."""

    pool: str
    contender: str
    tasks_per_second: float
    worker_microseconds: float
    """Processor time for a task."""
    broker_microseconds: float
    backend_microseconds: float
    cpu_ratio: float
    rate_ratio: float
    server_ratio: float
    """The backend's processor time to that of the unwatched worker's broker."""
    cpu_ratios: list[float]
    """Of each round."""
    rate_ratios: list[float]
    lost: int
    doubled: int

    @property
    def missed(self) -> list[str]:
        """The targets that the row misses, as sentences. Only ours without an owner has some."""
        if self.contender != OURS:
            return []
        return [
            f"{name} is {value:g}, the target is {word} {target:g}"
            for name, value, word, target, is_met in (
                ("CPU", self.cpu_ratio, "at most", TARGET_CPU, self.cpu_ratio <= TARGET_CPU),
                ("rate", self.rate_ratio, "at least", TARGET_RATE, self.rate_ratio >= TARGET_RATE),
                (
                    "the backend's CPU",
                    self.server_ratio,
                    "at most",
                    TARGET_SERVER,
                    self.server_ratio <= TARGET_SERVER,
                ),
            )
            if not is_met
        ]


class CallRow(msgspec.Struct, frozen=True):
    """What a call costs the thread of a task."""

    call: str
    microseconds: float

    @property
    def missed(self) -> list[str]:
        """The target, if it is missed."""
        target = TARGET_MICROSECONDS[self.call]
        if self.microseconds <= target:
            return []
        return [f"{self.microseconds:g} µs, the target is at most {target:g} µs"]


def make_row(pool: str, contender: str, rounds: Sequence[Round], plain: Sequence[Round]) -> Row:
    """Sum up a contender's rounds; ``plain`` are those of the unwatched worker, in order."""
    pairs = list(zip(rounds, plain, strict=True))
    cpu = [one.worker_seconds / bare.worker_seconds for one, bare in pairs]
    rate = [bare.seconds / one.seconds for one, bare in pairs]
    server = [one.backend_seconds / bare.broker_seconds for one, bare in pairs]

    def micros(values: Iterator[float]) -> float:
        return round(statistics.median(values) / rounds[0].tasks * 1e6, 1)

    return Row(
        pool=pool,
        contender=contender,
        tasks_per_second=round(statistics.median(one.tasks / one.seconds for one in rounds), 1),
        worker_microseconds=micros(one.worker_seconds for one in rounds),
        broker_microseconds=micros(one.broker_seconds for one in rounds),
        backend_microseconds=micros(one.backend_seconds for one in rounds),
        cpu_ratio=round(statistics.median(cpu), 3),
        rate_ratio=round(statistics.median(rate), 3),
        server_ratio=round(statistics.median(server), 3),
        cpu_ratios=[round(each, 3) for each in cpu],
        rate_ratios=[round(each, 3) for each in rate],
        lost=sum(one.lost for one in rounds),
        doubled=sum(one.doubled for one in rounds),
    )


def show(rows: Sequence[Row], calls: Sequence[CallRow], machine: dict[str, Any]) -> None:
    """Print a line for each contender and call, and the machine."""
    table = Table(title="worker: tasks that take no time (median of the rounds)")
    table.add_column("pool")
    table.add_column("worker")
    for heading in ("tasks/s", "rate", "CPU", "µs/task", "broker µs", "backend µs", "backend"):
        table.add_column(heading, justify="right")
    table.add_column("lost", justify="right")
    table.add_column("doubled", justify="right")
    table.add_column("met")
    for row in rows:
        met = "" if row.contender != OURS else "[bold red]no[/]" if row.missed else "yes"
        table.add_row(
            row.pool,
            row.contender,
            f"{row.tasks_per_second:,.0f}",
            f"{row.rate_ratio:.2f}",
            f"{row.cpu_ratio:.2f}",
            f"{row.worker_microseconds:.0f}",
            f"{row.broker_microseconds:.0f}",
            f"{row.backend_microseconds:.0f}",
            f"{row.server_ratio:.2f}",
            count_text(row.lost),
            count_text(row.doubled),
            met,
        )
    console = make_console(TABLE_COLUMNS)
    console.print(table)
    for call in calls:
        console.print(f"{call.call}: {call.microseconds:g} µs", highlight=False)
    console.print(machine_text(machine), highlight=False)


def report_json(rows: Sequence[Row], calls: Sequence[CallRow], machine: dict[str, Any]) -> bytes:
    """Return the report; ``is_met`` is null in a row without targets."""
    return encode_json(
        {
            "scenario": "worker",
            "machine": machine,
            "rows": [
                {
                    **msgspec.to_builtins(row),
                    "is_met": not row.missed if row.contender == OURS else None,
                }
                for row in rows
            ],
            "calls": [{**msgspec.to_builtins(row), "is_met": not row.missed} for row in calls],
        }
    )
