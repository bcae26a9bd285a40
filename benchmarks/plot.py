"""A comparison as a picture: a panel for each scenario, with a line for each contender."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.comparison import RATES, Row

HEADINGS = {
    "fanout": ("Fan-out to {sockets} sockets", "deliveries/s, more is better"),
    "publish": ("Publish, one producer", "events/s, more is better"),
    "latency": ("Latency at {steady_rate} events/s", "ms, p50 to p99, less is better"),
    "catchup": ("Catch-up on {missed_events:,} events", "ms, p50 to p99, less is better"),
}


class Palette(NamedTuple):
    """The colors for one kind of page."""

    text: str
    note: str
    grid: str
    peer: str
    ours: str
    lost: str


LIGHT = Palette("#1f2328", "#59636e", "#d8dee4", "#818b98", "#0969da", "#cf222e")
DARK = Palette("#e6edf3", "#9198a1", "#30363d", "#848d97", "#4493f8", "#f85149")
COLUMNS = 2
# In inches: 12.2 are the width of a README. Each contender adds a line to each row of panels.
WIDTH, LINE_HEIGHT, HEADING_HEIGHT, NOTE_HEIGHT = 12.2, 0.27, 1.5, 0.6
GAP_LINES = 0.6
"""Between ours and the peers."""
STYLE: dict[Any, object] = {
    # Text stays text, in the reader's font. Positions are computed with the first font, which
    # matplotlib brings along, and ids with the salt: every machine writes the same bytes.
    "font.sans-serif": ["DejaVu Sans", "Segoe UI", "Helvetica", "Arial"],
    "font.size": 12,
    "svg.fonttype": "none",
    "svg.hashsalt": "semantik-realtime",
    "text.parse_math": False,
    # An axis begins and ends at a power of ten.
    "axes.autolimit_mode": "round_numbers",
    "axes.xmargin": 0,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelpad": 6,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.hspace": 0.1,
    "xaxis.labellocation": "left",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.major.pad": 12,
}


def write_pictures(
    file: Path, machine: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """Write ``x.svg`` for light pages, and beside it ``x-dark.svg`` for dark ones."""
    file.write_text(draw(machine, settings, rows, LIGHT))
    file.with_stem(f"{file.stem}-dark").write_text(draw(machine, settings, rows, DARK))


def draw(
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    palette: Palette = LIGHT,
) -> str:
    """Return the picture as SVG with a transparent background.

    The same arguments give the same text on every machine with the same matplotlib.
    """
    style = STYLE | {
        "text.color": palette.text,
        "axes.labelcolor": palette.note,
        "grid.color": palette.grid,
        "xtick.labelcolor": palette.note,
        "ytick.labelcolor": palette.text,
    }
    scenarios = [name for name in HEADINGS if any(row.scenario == name for row in rows)]
    places = _places(rows)
    lines = max(1, -(-len(scenarios) // COLUMNS))
    height = lines * (HEADING_HEIGHT + LINE_HEIGHT * len(places)) + NOTE_HEIGHT
    output = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure((WIDTH, height), layout="constrained")
        panels = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, scenario in zip(panels, scenarios, strict=False):
            title, unit = (text.format(**settings) for text in HEADINGS[scenario])
            axes.set(title=title, xlabel=unit)
            _draw_panel(axes, [row for row in rows if row.scenario == scenario], places, palette)
        figure.supxlabel(_note(machine), x=0.01, ha="left", size=10.5, color=palette.note)
        metadata = {"Title": "semantik-realtime beside its peers", "Creator": None, "Date": None}
        figure.savefig(output, format="svg", transparent=True, metadata=metadata)
    return output.getvalue()


def _places(rows: Sequence[Row]) -> dict[str, float]:
    """Return each contender's line: ours first, the peers after a gap."""
    names = list(dict.fromkeys(_name(row) for row in sorted(rows, key=lambda row: not row.is_ours)))
    ours = {_name(row) for row in rows if row.is_ours}
    gap = GAP_LINES if ours else 0.0
    return {name: place + (0.0 if name in ours else gap) for place, name in enumerate(names)}


def _draw_panel(
    axes: Axes, rows: Sequence[Row], places: Mapping[str, float], palette: Palette
) -> None:
    axes.set_axis_on()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.minorticks_off()
    axes.spines[:].set_visible(False)
    axes.set_yticks(list(places.values()), list(places))
    axes.set_ylim(max(places.values()) + 0.5, -0.5)
    for row in rows:
        y, values = places[_name(row)], _values(row)
        color = palette.ours if row.is_ours else palette.peer
        # A rate is a point and not a bar: a logarithmic axis has no zero to begin a bar at.
        if values:
            axes.plot(values, [y] * len(values), "o-", ms=7, lw=4, color=color, clip_on=False)
        axes.annotate(
            _figure(row),
            (1, y),
            (12, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center_baseline",
            color=palette.text if values else palette.lost,
        )
    ours = {_name(row) for row in rows if row.is_ours}
    for label in axes.get_yticklabels():
        if label.get_text() in ours:
            label.set(color=palette.ours, weight="bold")


def _name(row: Row) -> str:
    return f"{row.contender}, {row.broker}" if row.is_ours else row.contender


def _values(row: Row) -> list[float]:
    """Return what is drawn of a row: a rate, or the ends of a range of milliseconds."""
    if row.scenario in RATES:
        return [row.events_per_second] if row.events_per_second else []
    return [row.milliseconds["p50"], row.milliseconds["p99"]] if row.milliseconds else []


def _figure(row: Row) -> str:
    """Return what is written beside a row."""
    values = _values(row)
    if not values:
        share = row.lost / max(1, row.sockets * row.events_published)
        return "failed" if row.failure is not None else f"{share:.0%} lost" if share else "–"
    if row.scenario not in RATES:
        texts = (f"{value:.1f}" if value < 100 else _short(value) for value in values)
        return " – ".join(dict.fromkeys(texts))
    if row.is_ours or row.ours_ratio is None or row.ours_ratio < 1.5:
        return _short(values[0])
    return f"{_short(values[0])} · {row.ours_ratio:.0f}× less"


def _short(value: float) -> str:
    """Return a number in two or three digits.

    >>> [_short(value) for value in (0.1, 20, 1000, 6_854, 68_548, 1_410_575)]
    ['0.1', '20', '1k', '6.9k', '69k', '1.4M']
    """
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            rest = value / unit
            return f"{rest:.0f}{name}" if rest >= 9.95 else f"{rest:.2g}{name}"
    return f"{value:.3g}"


def _note(machine: Mapping[str, Any]) -> str:
    versions = {**machine["versions"], **machine.get("servers", {})}
    shown = [
        f"{name} {versions[name]}" for name in ("valkey", "nats", "uvicorn") if name in versions
    ]
    return (
        "Logarithmic scales. Peers use Valkey; “× less” compares with semantik-realtime, valkey.\n"
        f"{machine['cpu_count']} × {machine['cpu']}, {', '.join([machine['python'], *shown])}."
    )
