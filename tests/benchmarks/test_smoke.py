"""The benchmarks run, report what they measured, and fail if an event goes astray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semantik_realtime.testing.servers import ServerMissing, valkey_program

ROOT = Path(__file__).parents[2]
ROW_NAMES = {
    ("publish", "memory"): ["one job", "a hundred jobs", "job.progress()"],
    ("publish", "valkey"): ["bare XADD", "one job", "a hundred jobs", "job.progress()"],
    ("fanout", "memory"): ["one frame per event", "one frame per batch"],
    ("fanout", "valkey"): ["one frame per event", "one frame per batch"],
}
SCENARIOS = ("publish", "fanout")
BACKENDS = ("memory", pytest.param("valkey", marks=pytest.mark.valkey))


def run(scenario: str, backend: str, directory: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the report of a quick run."""
    if backend == "valkey":
        try:
            valkey_program()
        except ServerMissing as error:
            pytest.skip(str(error))
    file = directory / "report.json"
    command = [sys.executable, "-m", f"benchmarks.{scenario}", "--quick", "--backend", backend]
    done = subprocess.run(
        [*command, "--json", str(file), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert file.exists(), done.stderr
    return done.returncode, json.loads(file.read_text())


def check_fanout(alone: dict[str, Any], together: dict[str, Any]) -> None:
    """Check that the yardstick sends one event per frame, and that the ratio is to its rate."""
    assert alone["events_per_frame"] == 1
    assert together["events_per_frame"] > 1
    assert together["ratio"] == pytest.approx(
        together["events_per_second"] / alone["events_per_second"], rel=0.01
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_quick_run_measures_every_row_and_loses_nothing(
    scenario: str, backend: str, tmp_path: Path
) -> None:
    code, report = run(scenario, backend, tmp_path)
    assert code == 0
    assert report["scenario"] == scenario
    assert report["machine"]["cpu_count"] > 0
    assert report["machine"]["versions"]["redis"]
    rows = report["rows"]
    assert [row["name"] for row in rows] == ROW_NAMES[scenario, backend]
    for row in rows:
        assert row["backend"] == backend
        assert row["events"] > 0
        assert row["events_per_second"] > 0
        assert (row["lost"], row["doubled"], row["disordered"]) == (0, 0, 0)
    if scenario == "fanout":
        check_fanout(*rows)


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_that_loses_events_fails_and_reports_how_many(
    scenario: str, backend: str, tmp_path: Path
) -> None:
    code, report = run(scenario, backend, tmp_path, "--lose", "150")
    assert code == 1
    lossy = [row for row in report["rows"] if row["lost"]]
    # One number of 150 was left out; in a fan-out every socket misses it.
    assert [row["name"] for row in lossy] == [
        row["name"] for row in report["rows"] if row["name"] not in ("bare XADD", "job.progress()")
    ]
    for row in lossy:
        numbers = row.get("events_published", row["events"])
        assert row["lost"] == numbers // 150 * row.get("sockets", 1)
        assert (row["doubled"], row["disordered"]) == (0, 0)
