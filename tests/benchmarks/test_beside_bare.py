"""What `benchmarks.jobs` and `benchmarks.connections` report, and which targets a run misses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import connections, jobs
from benchmarks.beside_bare import BARE, BareReport, make_rows
from benchmarks.contender import OURS
from benchmarks.measurement import DeliveryErrors, Measurement
from semantik_realtime.testing.servers import ServerMissing, valkey_program

ROOT = Path(__file__).parents[2]


def a_round(lost: int = 0, **figures: float) -> Measurement:
    return Measurement(10, 1.0, DeliveryErrors(lost=lost), {"events_published": 10, **figures})


def test_ratios_are_of_the_same_round_and_growth_is_to_the_fewest_jobs() -> None:
    rows = make_rows(
        {
            (BARE, "valkey", 100): [a_round(server_us=100.0), a_round(server_us=200.0)],
            (OURS, "nats", 100): [a_round(server_us=110.0), a_round(server_us=260.0)],
            (BARE, "valkey", 900): [a_round(server_us=100.0), a_round(server_us=100.0)],
            (OURS, "nats", 900): [a_round(server_us=220.0), a_round(server_us=390.0, lost=2)],
        },
        OURS,
    )
    few, many = rows[1], rows[3]
    assert few.figures["server_us"] == 185.0
    assert few.ratios["server_us"] == 1.2
    assert few.growth["server_us"] == 1.0
    assert many.growth["server_us"] == 1.75
    assert "events_published" not in many.figures
    assert (few.lost, many.lost) == (0, 2)


def test_what_could_not_be_measured_has_no_figure_and_a_failed_round_has_none() -> None:
    [bare, row] = make_rows(
        {
            (BARE, "valkey", 1): [a_round(p50_ms=1.0), a_round(p50_ms=1.0)],
            (OURS, "valkey", 1): ["did not start", a_round(p50_ms=3.0, broker_us=float("nan"))],
        },
        OURS,
    )
    assert row.failure == "did not start"
    assert row.figures == {"p50_ms": 3.0}
    assert row.ratios == {"p50_ms": 3.0}
    assert bare.failure is None


def test_each_target_is_a_line_and_only_ours_has_targets() -> None:
    measured = {
        (BARE, "valkey", 100): [a_round(server_us=100.0, broker_us=40.0)],
        (OURS, "valkey", 100): [a_round(server_us=120.0, broker_us=100.0)],
        (BARE, "valkey", 900): [a_round(server_us=100.0, broker_us=40.0)],
        (OURS, "valkey", 900): [a_round(server_us=150.0, broker_us=80.0)],
    }
    rows = make_rows(measured, OURS)
    than_few = "beside that of 100 jobs"
    assert [target.text() for target in jobs.targets(rows, watchers=1)] == [
        f"{verdict}: {OURS} with valkey, {count} jobs: {what}"
        for verdict, count, what in (
            (
                "missed",
                900,
                f"server_us {than_few} is 1.25, the target is at most 1.15",
            ),
            ("met", 100, "server_us beside the bare loop's is 1.2, the target is at most 1.25"),
            ("missed", 900, "server_us beside the bare loop's is 1.5, the target is at most 1.25"),
            ("missed", 100, "broker_us beside a bare PUBLISH is 2.5, the target is at most 2.2"),
            ("met", 900, "broker_us beside a bare PUBLISH is 2, the target is at most 2.2"),
        )
    ]
    assert jobs.targets(rows, watchers=2) == []


def test_the_idle_processor_time_has_a_target_for_its_number_of_watchers_alone() -> None:
    def targets(watchers: int, broker: str) -> list[tuple[str, float, bool]]:
        rows = make_rows({(OURS, broker, watchers): [a_round(server_idle_percent=4.0)]}, OURS)
        return [(one.what, one.most, one.is_met) for one in connections.targets(rows)]

    assert targets(5000, "redis") == [("server_idle_percent", 3.0, False)]
    assert targets(5000, "nats") == [("server_idle_percent", 6.0, True)]
    assert targets(20, "redis") == []


def test_a_missed_target_fails_a_checked_run_and_a_lost_event_every_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {
        (BARE, "valkey", 5): [a_round(server_us=100.0)],
        (OURS, "valkey", 5): [a_round(server_us=200.0)],
    }
    report = BareReport("jobs", jobs.COLUMNS, {}, rows=make_rows(measured, OURS))
    report.targets = jobs.targets(report.rows, watchers=1)
    file = tmp_path / "report.json"
    assert report.finish(file, check=False) == 0
    assert [one["is_met"] for one in json.loads(file.read_text())["targets"]] == [False]
    assert report.finish(None, check=True) == 1
    measured[OURS, "valkey", 5] = [a_round(lost=1, server_us=100.0)]
    report.rows, report.targets = make_rows(measured, OURS), []
    assert report.finish(None, check=False) == 1
    assert "lost 1, doubled 0" in capsys.readouterr().err


def run(name: str, directory: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the report of a quick run with Valkey."""
    try:
        valkey_program()
    except ServerMissing as error:
        pytest.skip(str(error))
    file = directory / "report.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--backends", "valkey"]
    done = subprocess.run(
        [*command, "--peers", "", "--json", str(file), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert file.exists(), done.stderr
    return done.returncode, json.loads(file.read_text())


@pytest.mark.valkey
def test_a_quick_run_with_many_jobs_measures_every_figure_and_counts_what_is_lost(
    tmp_path: Path,
) -> None:
    code, report = run("jobs", tmp_path, "--watchers", "2", "--lose", "150")
    assert code == 1
    bare, ours = report["rows"]
    assert (bare["contender"], ours["contender"]) == (BARE, OURS)
    for row in (bare, ours):
        assert row["failure"] is None
        assert row["figures"].keys() >= jobs.COLUMNS.keys()
        # One number of 150 was left out, and two clients watch each job.
        assert row["lost"] == 1000 // 150 * 2
        assert (row["doubled"], row["disordered"]) == (0, 0)
    assert ours["ratios"].keys() >= {"server_us", "p50_ms", "p99_ms", "join_ms"}


@pytest.mark.valkey
def test_a_quick_run_of_connections_measures_every_figure(tmp_path: Path) -> None:
    code, report = run("connections", tmp_path)
    assert code == 0
    for row in report["rows"]:
        assert row["failure"] is None
        assert row["figures"].keys() >= connections.COLUMNS.keys()
        assert row["figures"]["crowd_ms"] > 0
