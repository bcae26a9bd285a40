"""The rows of a comparison: tables for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.contender import OURS, Contender
from benchmarks.measurement import Measurement
from benchmarks.output import count_text, encode_json, machine_text

DEFAULT_BROKER = "valkey"
TITLES = {
    "publish": "publish: events/s from one producer to the broker",
    "fanout": "fan-out: deliveries/s to {sockets} sockets of one process",
    "latency": "latency: from the publishing call to the client, {steady_sockets} sockets, "
    "{steady_rate} events/s",
    "catchup": "catch-up: a client missed {missed_events:,} events",
}
RATES = ("publish", "fanout")
"""The scenarios that measure a rate; the others measure milliseconds."""
TARGETS = {
    "python-socketio": 10.0,
    "channels": 10.0,
    "channels, pub/sub layer": 10.0,
    "broadcaster": 5.0,
    "pub/sub connection per socket": 5.0,
}
"""In a fan-out, the least ratio of our rate over the default broker to a peer's."""
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
    """Published or delivered; None if the scenario measures milliseconds."""
    ours_ratio: float | None = None
    """Our rate over the default broker, divided by this rate."""
    target_ours_ratio: float | None = None
    """The least ratio that meets the target."""
    milliseconds: dict[str, float] | None = None
    """Percentiles; None if the scenario measures a rate, or if events were lost in a catch-up."""
    sockets: int = 0
    events_asked: int = 0
    events_published: int = 0
    """Fewer than asked if the time was over before."""
    deliveries: int = 0
    """To all clients together."""
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    server_cpu_share: float | None = None
    """How much of one core the web server used."""
    client_cpu_share: float | None = None
    """How much of one core the clients used."""

    @property
    def is_met(self) -> bool | None:
        """Whether ours meets its target beside this peer; None without one."""
        if self.ours_ratio is None or self.target_ours_ratio is None:
            return None
        return self.ours_ratio >= self.target_ours_ratio

    @property
    def is_finished(self) -> bool:
        """Whether every event that was asked for was published in time."""
        return self.failure is None and self.events_published == self.events_asked

    @property
    def is_clean(self) -> bool:
        """Whether every client received every event, once and in order."""
        return self.failure is None and not (self.lost or self.doubled or self.disordered)


def make_row(scenario: str, contender: Contender, measured: Measurement) -> Row:
    """Return the row of a measurement."""
    facts = measured.facts
    is_rate = scenario in RATES
    return Row(
        scenario=scenario,
        contender=contender.name,
        broker=contender.broker,
        is_ours=contender.name == OURS,
        events_per_second=round(measured.events_per_second, 1) if is_rate else None,
        milliseconds=facts.get("milliseconds"),
        sockets=facts.get("sockets", 1),
        events_asked=facts["events_asked"],
        events_published=facts.get("events_published", measured.events),
        deliveries=facts.get("deliveries", measured.events),
        lost=measured.errors.lost,
        doubled=measured.errors.doubled,
        disordered=measured.errors.disordered,
        server_cpu_share=facts.get("server_cpu_share"),
        client_cpu_share=facts.get("client_cpu_share"),
    )


def make_failure(scenario: str, contender: Contender, failure: str) -> Row:
    """Return the row of a contender that could not be measured."""
    return Row(
        scenario=scenario,
        contender=contender.name,
        broker=contender.broker,
        is_ours=contender.name == OURS,
        failure=failure,
    )


def set_ratios(rows: Sequence[Row]) -> None:
    """Set the ratio of our rate to every rate: ours over the default broker, else our first."""
    for scenario in RATES:
        measured = [row for row in rows if row.scenario == scenario and row.events_per_second]
        ours = sorted(
            (row for row in measured if row.is_ours), key=lambda row: row.broker != DEFAULT_BROKER
        )
        for row in measured:
            if ours and row.events_per_second and ours[0].events_per_second:
                row.ours_ratio = round(ours[0].events_per_second / row.events_per_second, 2)


def set_targets(rows: Sequence[Row]) -> None:
    """Set the targets of the fan-out, unless ours over the default broker was not measured."""
    fanout = [row for row in rows if row.scenario == "fanout"]
    if any(row.is_ours and row.broker == DEFAULT_BROKER and row.ours_ratio for row in fanout):
        for row in fanout:
            row.target_ours_ratio = TARGETS.get(row.contender)


def missed_texts(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each target that is missed."""
    return [
        f"{row.scenario}: ours over {DEFAULT_BROKER} reaches {row.ours_ratio:g} times the rate of "
        f"{row.contender}; the target is {row.target_ours_ratio:g} times"
        for row in rows
        if row.is_met is False
    ]


def passes(rows: Sequence[Row], check: bool = False) -> bool:
    """Return True if there are rows, and no event of ours was lost, doubled or disordered.

    The errors of a peer are a result of the comparison, not a failure of the run. So is a
    missed target, because peers vary, unless ``check`` is set.
    """
    if check and any(row.is_met is False for row in rows):
        return False
    return bool(rows) and all(row.is_clean for row in rows if row.is_ours)


def encode(machine: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> bytes:
    """Return ``machine``, ``settings`` and ``rows`` as JSON; benchmarks/README.md lists them."""
    members = [
        {**msgspec.to_builtins(row), "is_finished": row.is_finished, "is_met": row.is_met}
        for row in rows
    ]
    return encode_json({"machine": machine, "settings": settings, "rows": members})


def show(
    console: Console,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    rows: Sequence[Row],
) -> None:
    """Print a table for each scenario, the machine, and the settings."""
    for scenario, title in TITLES.items():
        measured = [row for row in rows if row.scenario == scenario]
        if measured:
            console.print(_table(title.format(**settings), scenario in RATES, measured))
    console.print(machine_text(machine), highlight=False)
    texts = (f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items())
    console.print(", ".join(texts), highlight=False)


def _table(title: str, is_rate: bool, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    table.add_column("broker")
    figures = (
        ("events/s", "ours / this") if is_rate else tuple(f"{name} ms" for name in PERCENTILES)
    )
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
                (f"{row.events_per_second:,.0f}", _ratio_text(row))
                if is_rate
                else (f"{times[place]:,.1f}" if times else "–" for place in PERCENTILES)
            ),
            f"{row.events_published:,}" + ("" if row.is_finished else f" of {row.events_asked:,}"),
            f"{row.deliveries:,}",
            *(count_text(number) for number in (row.lost, row.doubled, row.disordered)),
        )
    return table


def _ratio_text(row: Row) -> str:
    text = f"{row.ours_ratio or 0:,.1f} ×"
    if row.is_met is False:
        return f"[bold red]{text}, below target {row.target_ours_ratio:g}[/]"
    return text
