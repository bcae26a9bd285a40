"""The benchmark of floods measures each kind of frame, and its targets are those of its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.flood import FLOODS, Row, main

ROW = Row("ping", 1000, 10.0, 5.0, 15.0, 40.0, 10.0)


def test_a_quick_run_measures_every_flood(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = CliRunner().invoke(main, ["--quick", "--frames", "200", "--json", str(file)])
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())["rows"]
    assert [row["flood"] for row in rows] == list(FLOODS)
    assert all(row["flooded_p99_milliseconds"] > 0 for row in rows)
    # A repeated frame of 100 topics has a few bytes, which is what makes a flood cheap.
    assert rows[0]["bytes_per_frame"] < 60


@pytest.mark.parametrize(
    ("row", "is_met"),
    [
        (ROW, True),
        (Row("ping", 1000, 10.0, 5.0, 51.0, 60.0, 10.0), False),
        (Row("ping", 1000, 10.0, 30.0, 59.0, 60.0, 10.0), True),
        (Row("ping", 1000, 10.0, 5.0, 15.0, 40.0, 51.0), False),
        (Row("ping", 1000, 10.0, 5.0, 15.0, 40.0, None), True),
    ],
)
def test_a_flood_may_double_the_wait_of_others_and_take_fifty_megabytes(
    row: Row, is_met: bool
) -> None:
    assert row.is_met is is_met
