"""The outage benchmark measures a real outage, and counts the events that go astray in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.demo_job import JobWatcher, Run
from benchmarks.outage import slowdown
from semantik_realtime.client import Update
from semantik_realtime.core.fold import View

ROOT = Path(__file__).parents[2]
CLEAN = Run(
    "valkey", 2.0, 10.0, degraded_after_seconds=1.0, live_after_seconds=0.5, ends=1, events=5
)


@pytest.mark.valkey
@pytest.mark.timeout(120)
def test_a_watcher_is_degraded_and_live_again_and_misses_nothing_of_a_short_outage(
    tmp_path: Path,
) -> None:
    file = tmp_path / "outage.json"
    options = ["--seconds", "2", "--documents", "40", "--kilobytes", "200", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.outage", "--backend", "valkey", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(file.read_text())
    assert report["machine"]["versions"]["redis"]
    before, during, after = report["rows"]
    assert [row["outage_seconds"] for row in report["rows"]] == [0, 2, 0]
    for row in report["rows"]:
        assert row["ends"] == 1
        assert row["events"] > 40
        assert (row["lost"], row["doubled"], row["disordered"], row["went_back"]) == (0, 0, 0, 0)
    assert during["degraded_after_seconds"] is not None
    assert during["live_after_seconds"] is not None
    assert before["degraded_after_seconds"] is after["degraded_after_seconds"] is None
    assert "of the time without" in done.stdout


@pytest.mark.parametrize(
    "fault",
    [
        *({name: 1} for name in ("lost", "doubled", "disordered", "went_back")),
        {"ends": 0},
        {"ends": 2},
        {"live_after_seconds": None},
    ],
    ids=str,
)
def test_every_fault_fails_the_run(fault: dict[str, int | None]) -> None:
    assert CLEAN.is_clean
    assert not msgspec.structs.replace(CLEAN, **fault).is_clean


def test_the_slowdown_compares_the_medians_with_and_without_an_outage() -> None:
    runs = [CLEAN, Run("valkey", 0.0, 8.0), Run("valkey", 0.0, 12.0)]
    assert slowdown(runs) == 1.0
    assert slowdown([*runs, Run("valkey", 3.0, 12.0)]) == 1.1


def test_events_that_a_later_one_replaces_are_merged_and_no_offset_is_forgotten() -> None:
    watcher, view = JobWatcher(), View("job:1")

    def receive(offset: int, *offsets: int) -> None:
        view.offset = offset
        watcher.record(Update("live", view, [{"offset": each} for each in offsets]), "1")

    receive(2, 1, 2)
    assert watcher.merged == 0
    receive(7, 5, 7)
    assert watcher.merged == 3
    receive(7)
    assert (watcher.merged, watcher.offset, watcher.offsets) == (3, 7, [1, 2, 5, 7])


def test_events_may_be_merged_only_after_an_outage() -> None:
    merged = msgspec.structs.replace(CLEAN, merged=9)
    assert merged.is_clean
    assert not msgspec.structs.replace(merged, outage_seconds=0.0).is_clean
