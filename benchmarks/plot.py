"""A comparison as one picture: a line for each contender, a column for each scenario."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.comparison import RATES, Row

HEADINGS = {
    "fanout": ("Fan-out to {sockets} sockets", "deliveries/s"),
    "publish": ("Publish, one producer", "events/s"),
    "latency": ("Latency at {steady_rate} events/s", "ms, p50 to p99"),
    "catchup": ("Away for {missed_events:,} events", "ms until all is there"),
}
WIDTHS = {"fanout": 232, "publish": 232, "latency": 218, "catchup": 200}
"""Of the columns, in pixels; the first are for the axis."""
NAMES_WIDTH, AXIS_WIDTH = 236, 104
HEAD, LINE, BREAK, FOOT = 66, 25, 18, 50
MOST_NUMBERS = 4
"""On an axis."""
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
text { fill: #656d76 }
.title { font-weight: 600; fill: #57606a }
.small { font-size: 11px; fill: #6e7781 }
.grid { stroke: #d8dee4 }
.peer { fill: #afb8c1; stroke: #afb8c1 }
.ours { fill: #1f7ae0; stroke: #1f7ae0 }
.lost { fill: #cf222e }
text.ours { stroke: none; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #adbac7 }
  .title { fill: #e6edf3 }
  .small { fill: #8b949e }
  .grid { stroke: #343b44 }
  .peer { fill: #636e7b; stroke: #636e7b }
  .ours { fill: #539bf5; stroke: #539bf5 }
  .lost { fill: #f47067 }
}
"""

Line = tuple[str, str]
"""A contender and its broker."""


class Scale:
    """Places on a logarithmic axis of whole decades around ``values``.

    >>> scale = Scale([20, 500], left=100, width=96)
    >>> scale.decades, scale.place(100)
    ([10, 100, 1000], 148.0)
    """

    def __init__(self, values: Iterable[float], left: float, width: float) -> None:
        found = list(values) or [1.0]
        first = math.floor(math.log10(min(found)))
        last = max(first + 1, math.ceil(math.log10(max(found))))
        self.decades = [10**power for power in range(first, last + 1)]
        self._first, self._left, self._step = first, left, width / (last - first)

    def place(self, value: float) -> float:
        """Where a value is, in pixels."""
        return self._left + (math.log10(value) - self._first) * self._step


def draw(machine: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The picture as SVG, for light and dark pages."""
    lines = _lines(rows)
    columns = [scenario for scenario in HEADINGS if any(row.scenario == scenario for row in rows)]
    bottom = max(lines.values(), default=HEAD) + LINE / 2
    width, height = NAMES_WIDTH + sum(WIDTHS[one] for one in columns), bottom + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" '
        f'width="{width}" height="{height:g}" role="img"><style>{STYLE}</style>'
    ]
    names = {(row.contender, row.broker): _name(row) for row in rows}
    for line, y in lines.items():
        name, style = names[line]
        parts.append(_text(NAMES_WIDTH - 14, y + 4, name, style, "end"))
    left = NAMES_WIDTH
    for scenario in columns:
        for y, text, style in zip((18, 36), HEADINGS[scenario], ("title", "small"), strict=True):
            parts.append(_text(left, y, text.format(**settings), style))
        there = [row for row in rows if row.scenario == scenario]
        parts += _column(there, lines, left, bottom)
        left += WIDTHS[scenario]
    parts.append(_text(4, height - 8, _note(machine), "small"))
    return "\n".join([*parts, "</svg>", ""])


def _lines(rows: Sequence[Row]) -> dict[Line, float]:
    """Where each contender's line is: ours first, the peers after a break."""
    lines: dict[Line, float] = {}
    y = HEAD
    for is_ours in (True, False):
        for row in rows:
            line = (row.contender, row.broker)
            if row.is_ours is is_ours and line not in lines:
                lines[line] = y
                y += LINE
        y += BREAK
    return lines


def _name(row: Row) -> tuple[str, str]:
    return (f"{row.contender}, {row.broker}", "ours") if row.is_ours else (row.contender, "")


def _column(
    rows: Sequence[Row], lines: Mapping[Line, float], left: float, bottom: float
) -> Iterator[str]:
    values = [value for row in rows for value in _values(row)]
    scale = Scale(values, left, AXIS_WIDTH)
    # Where there are many, every second has its number: they would run into each other.
    step = 1 if len(scale.decades) <= MOST_NUMBERS else 2
    for place, decade in enumerate(scale.decades):
        x = scale.place(decade)
        yield f'<path class="grid" d="M{x:g} {HEAD - LINE / 2}V{bottom:g}"/>'
        if place % step == 0:
            yield _text(x, bottom + 14, _short(decade), "small", "middle")
    for row in rows:
        y = lines[row.contender, row.broker]
        style = "ours" if row.is_ours else "peer"
        places = [scale.place(value) for value in _values(row)]
        if row.scenario in RATES and places:
            yield f'<rect class="{style}" x="{left}" y="{y - 6:g}" height="12" rx="2" ' + (
                f'width="{max(2, places[0] - left):.1f}" stroke="none"/>'
            )
        elif places:
            yield f'<path class="{style}" d="M{places[0]:.1f} {y:g}H{places[-1]:.1f}" ' + (
                'stroke-width="5" stroke-linecap="round"/>'
            )
        yield _text(left + AXIS_WIDTH + 8, y + 4, *_figure(row))


def _values(row: Row) -> list[float]:
    """What is drawn of a row: a rate, or the ends of a range of milliseconds."""
    if row.scenario in RATES:
        return [row.events_per_second] if row.events_per_second else []
    return [row.milliseconds["p50"], row.milliseconds["p99"]] if row.milliseconds else []


def _figure(row: Row) -> tuple[str, str]:
    """What is written beside a row, and its class."""
    values = _values(row)
    if not values:
        if row.failure is not None:
            return "failed", "lost"
        share = row.lost / max(1, row.sockets * row.events_published)
        return (f"{share:.0%} lost" if share else "–"), "lost"
    if row.scenario not in RATES:
        texts = (f"{value:.1f}" if value < 100 else _short(value) for value in values)
        return " – ".join(dict.fromkeys(texts)), ""
    if row.is_ours or row.ours_is is None:
        return _short(values[0]), ""
    return f"{_short(values[0])} · {row.ours_is:.0f}× less", ""


def _short(value: float) -> str:
    """A number in two or three digits.

    >>> [_short(value) for value in (0.1, 20, 1000, 6_854, 68_548, 1_410_575)]
    ['0.1', '20', '1k', '6.9k', '69k', '1.4M']
    """
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            rest = value / unit
            return f"{rest:.0f}{name}" if rest >= 9.95 else f"{rest:.2g}{name}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    kind = f' class="{style}"' if style else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}"{kind}{place}>{escape(text)}</text>'


def _note(machine: Mapping[str, Any]) -> str:
    versions = {**machine["versions"], **machine.get("servers", {})}
    told = [
        f"{name} {versions[name]}" for name in ("valkey", "nats", "uvicorn") if name in versions
    ]
    return (
        "Logarithmic scales. The peers use Valkey; “less” is than semantik-realtime with Valkey. "
        f"{machine['cpu_count']} × {machine['cpu']}, {', '.join([machine['python'], *told])}."
    )
