"""The figures of a comparison: a table for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.contender import OURS, Contender
from benchmarks.report import Measurement, count_text, machine_text

DEFAULT_BROKER = "valkey"
TITLES = {
    "publish": "publish: events/s that one producer brings to the broker",
    "fanout": "fan-out: deliveries/s to {sockets} sockets of one process",
    "latency": "latency: from the publishing call to the client, {steady_sockets} sockets, "
    "{steady_rate} events/s",
    "catchup": "catch-up: a client was away for {missed_events:,} events",
}
RATES = ("publish", "fanout")
TARGETS = {
    "python-socketio": 10.0,
    "channels": 10.0,
    "channels, pub/sub layer": 10.0,
    "broadcaster": 5.0,
    "pub/sub connection a socket": 5.0,
}
"""So many times a peer's rate is that of ours over the default broker to be, in a fan-out."""
PERCENTILES = ("p50", "p95", "p99")


class Row(msgspec.Struct, omit_defaults=False):
    """One contender in one scenario."""

    scenario: str
    contender: str
    broker: str
    is_ours: bool
    failure: str | None = None
    """Why there is no measurement."""
    events_per_second: float | None = None
    """Published or delivered, where the scenario asks for a rate."""
    ours_is: float | None = None
    """So many times this rate is that of ours over the default broker."""
    target_ours_is: float | None = None
    """So many times it is to be."""
    milliseconds: dict[str, float] | None = None
    """Percentiles, where the scenario asks for a time and nothing was lost on the way."""
    sockets: int = 0
    events_asked: int = 0
    events_published: int = 0
    """Fewer than asked: the time was over."""
    deliveries: int = 0
    """At the clients, all of them together."""
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    server_cpu_share: float | None = None
    """Of one core, while it was measured."""
    client_cpu_share: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether ours reaches its target beside this peer; None without one."""
        if self.ours_is is None or self.target_ours_is is None:
            return None
        return self.ours_is >= self.target_ours_is

    @property
    def is_finished(self) -> bool:
        """Whether everything asked for was published in time."""
        return self.failure is None and self.events_published == self.events_asked

    @property
    def is_clean(self) -> bool:
        """Whether every client got every event, once and in order."""
        return self.failure is None and not (self.lost or self.doubled or self.disordered)


def make_row(scenario: str, contender: Contender, measured: Measurement) -> Row:
    """What was measured, as a row."""
    facts = measured.facts
    timed = scenario not in RATES
    return Row(
        scenario=scenario,
        contender=contender.name,
        broker=contender.broker,
        is_ours=contender.name == OURS,
        events_per_second=None if timed else round(measured.events_per_second, 1),
        milliseconds=facts.get("milliseconds"),
        sockets=facts.get("sockets", 1),
        events_asked=facts["events_asked"],
        events_published=facts.get("events_published", measured.events),
        deliveries=facts.get("deliveries", measured.events),
        lost=measured.census.lost,
        doubled=measured.census.doubled,
        disordered=measured.census.disordered,
        server_cpu_share=facts.get("server_cpu_share"),
        client_cpu_share=facts.get("client_cpu_share"),
    )


def make_failure(scenario: str, contender: Contender, failure: str) -> Row:
    """That nothing was measured, as a row."""
    return Row(
        scenario=scenario,
        contender=contender.name,
        broker=contender.broker,
        is_ours=contender.name == OURS,
        failure=failure,
    )


def compare(rows: Sequence[Row]) -> None:
    """Set every rate's ratio to ours over the default broker, else to the first of ours."""
    for scenario in RATES:
        there = [row for row in rows if row.scenario == scenario and row.events_per_second]
        ours = sorted(
            (row for row in there if row.is_ours), key=lambda row: row.broker != DEFAULT_BROKER
        )
        for row in there:
            if ours and row.events_per_second and ours[0].events_per_second:
                row.ours_is = round(ours[0].events_per_second / row.events_per_second, 2)


def set_targets(rows: Sequence[Row]) -> None:
    """Hold ours over the default broker, if it was measured, to its targets in a fan-out."""
    there = [row for row in rows if row.scenario == "fanout"]
    if any(row.is_ours and row.broker == DEFAULT_BROKER and row.ours_is for row in there):
        for row in there:
            row.target_ours_is = TARGETS.get(row.contender)


def missed_texts(rows: Sequence[Row]) -> list[str]:
    """A sentence for each target that is missed."""
    return [
        f"{row.scenario}: ours over {DEFAULT_BROKER} is {row.ours_is:g} times {row.contender}, "
        f"the target is {row.target_ours_is:g} times."
        for row in rows
        if row.is_met is False
    ]


def passes(rows: Sequence[Row], check: bool = False) -> bool:
    """Whether something was measured and ours lost, doubled and disordered nothing.

    What becomes of a peer's events is a figure, not an error. So is a target
    that is missed, for peers vary: unless ``check`` is set.
    """
    if check and any(row.is_met is False for row in rows):
        return False
    return bool(rows) and all(row.is_clean for row in rows if row.is_ours)


def encode(machine: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> bytes:
    """All of it as JSON: ``machine``, ``settings`` and ``rows``; a row's members are `Row`'s."""
    members = [
        {**msgspec.to_builtins(row), "is_finished": row.is_finished, "is_met": row.is_met}
        for row in rows
    ]
    return msgspec.json.format(
        msgspec.json.encode({"machine": machine, "settings": settings, "rows": members})
    )


def show(
    console: Console,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    rows: Sequence[Row],
) -> None:
    """Print a table for each scenario, and what it was measured on."""
    for scenario, title in TITLES.items():
        there = [row for row in rows if row.scenario == scenario]
        if there:
            console.print(_table(title.format(**settings), scenario in RATES, there))
    console.print(machine_text(machine), highlight=False)
    said = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items())
    console.print(said, highlight=False)


def _table(title: str, is_rate: bool, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    table.add_column("broker")
    figures = ("events/s", "ours is") if is_rate else tuple(f"{name} ms" for name in PERCENTILES)
    for heading in (*figures, "published", "delivered", "lost", "doubled", "disordered"):
        table.add_column(heading, justify="right")
    for row in rows:
        name = f"[bold]{row.contender}[/]" if row.is_ours else row.contender
        if row.failure is not None:
            table.add_row(name, row.broker, f"[red]{row.failure}[/]")
            continue
        times = row.milliseconds or {}
        table.add_row(
            name,
            row.broker,
            *(
                (f"{row.events_per_second:,.0f}", _ours_is(row))
                if is_rate
                else (f"{times[place]:,.1f}" if times else "–" for place in PERCENTILES)
            ),
            f"{row.events_published:,}" + ("" if row.is_finished else f" of {row.events_asked:,}"),
            f"{row.deliveries:,}",
            *(count_text(number) for number in (row.lost, row.doubled, row.disordered)),
        )
    return table


def _ours_is(row: Row) -> str:
    text = f"{row.ours_is or 0:,.1f} ×"
    if row.is_met is False:
        return f"[bold red]{text}, below target {row.target_ours_is:g}[/]"
    return text
