"""The figures of engines beside each other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.engines import ENGINES, Figures, main, make_table, running_engine
from semantik_realtime.testing.servers import ROWS


def test_every_row_of_the_matrix_with_a_real_server_is_an_engine() -> None:
    assert set(ENGINES) == set(ROWS) - {"fakeredis"} | {"sqlite"}


def test_latencies_are_those_of_every_event_in_order() -> None:
    with running_engine("memory") as engine:

        async def measure() -> list[float]:
            await engine.backend.open()
            try:
                return await engine.latencies(20)
            finally:
                await engine.backend.close()

        found = asyncio.run(measure())
    assert len(found) == 20
    assert all(0 < one < 5000 for one in found)


def test_the_table_has_the_ratios_to_the_yardstick() -> None:
    figures = [Figures("valkey", 100, 1000, 1.0, 2.0, 4.0), Figures("x", 50, 2000, 2.0, 2.0, 8.0)]
    table = make_table(figures, "valkey")
    rows = [[str(cell) for cell in column.cells] for column in table.columns]
    assert [cells[1] for cells in rows] == [
        *("x", "50 (0.50)", "2,000 (2.00)", "2.00 (2.00)", "2.00 (1.00)", "8.0 (2.00)")
    ]


def test_a_quick_run_writes_the_figures_of_each_engine(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    given = ["--quick", "--engines", "memory", "--json", str(file)]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    [row] = json.loads(file.read_bytes())["rows"]
    assert row["engine"] == "memory"
    assert row["batch_per_second"] > 0
    assert row["single_per_second"] > 0
    assert row["job_kilobytes"] >= 0
