"""The picture of a comparison: an SVG for light pages and one for dark pages."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.comparison import Row

pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install --group benchmarks")
from benchmarks import plot

ROOT = Path(__file__).parents[2]
MACHINE = {
    "cpu_count": 2,
    "cpu": "A & B $4$",
    "python": "CPython",
    "versions": {"uvicorn": "1.2"},
    "servers": {"valkey": "9.1"},
}
SETTINGS = {"sockets": 5, "steady_rate": 200, "missed_events": 1000}
OURS = {"contender": "semantik-realtime", "broker": "valkey", "is_ours": True}
PEER = {"contender": "peer <1>", "broker": "valkey", "is_ours": False}
COUNTS = {"sockets": 5, "events_published": 10}
ROWS = [
    Row("fanout", **OURS, events_per_second=1_410_575, ours_ratio=1),
    Row("fanout", **PEER, events_per_second=68_548, ours_ratio=20.6),
    Row("latency", **OURS, milliseconds={"p50": 2.0, "p95": 5.0, "p99": 9.3}),
    Row("latency", **PEER, failure="no port"),
    Row("catchup", **OURS, milliseconds={"p50": 24.1, "p95": 24.1, "p99": 24.1}),
    Row("catchup", **PEER, **COUNTS, lost=45),
]


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_figure_is_written_beside_its_point() -> None:
    shown = texts(plot.draw(MACHINE, SETTINGS, ROWS))
    assert {"semantik-realtime, valkey", "peer <1>"} < {*shown}
    assert {"Fan-out to 5 sockets", "Latency at 200 events/s", "Catch-up on 1,000 events"} < {
        *shown
    }
    assert {"1.4M", "69k · 21× less", "2.0 – 9.3", "failed", "24.1", "90% lost"} < {*shown}
    assert "2 × A & B $4$, CPython, valkey 9.1, uvicorn 1.2." in shown


def test_both_pictures_say_the_same_in_their_own_colors(tmp_path: Path) -> None:
    file = tmp_path / "compare.svg"
    plot.write_pictures(file, MACHINE, SETTINGS, ROWS)
    light, dark = file.read_text(), (tmp_path / "compare-dark.svg").read_text()
    assert texts(light) == texts(dark)
    for svg, palette, other in ((light, plot.LIGHT, plot.DARK), (dark, plot.DARK, plot.LIGHT)):
        colors = {*re.findall(r"#[0-9a-f]{6}", svg)}
        assert colors >= {*palette}
        assert not colors & {*other} - {*palette}


def test_a_picture_has_the_same_bytes_in_another_process_and_no_date_or_path() -> None:
    here = plot.draw(MACHINE, SETTINGS, ROWS)
    code = (
        "import sys; from benchmarks.plot import draw; import test_plot as test; "
        "sys.stdout.write(draw(test.MACHINE, test.SETTINGS, test.ROWS))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "SOURCE_DATE_EPOCH": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert there == here
    assert "dc:date" not in here
    assert str(ROOT) not in here


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[1:2], ROWS[3:4]], ids=len)
def test_a_comparison_of_a_few_rows_is_drawn(rows: list[Row]) -> None:
    shown = texts(plot.draw(MACHINE, SETTINGS, rows))
    assert len([text for text in shown if text == "peer <1>"]) == sum(
        not row.is_ours for row in rows
    )


def test_the_committed_pictures_are_of_one_run() -> None:
    light, dark = (ROOT / "docs" / name for name in ("comparison.svg", "comparison-dark.svg"))
    assert texts(light.read_text()) == texts(dark.read_text())
    assert str(Path.home()) not in light.read_text()
