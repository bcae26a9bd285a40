"""The outage that is measured is one, and what goes astray in it is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.outage import Run, Watching, slowdown
from semantik_realtime.client import Update
from semantik_realtime.core.fold import View

ROOT = Path(__file__).parents[2]
GOOD = Run("valkey", 2.0, 10.0, told_after_seconds=1.0, live_after_seconds=0.5, ends=1, events=5)


@pytest.mark.valkey
@pytest.mark.timeout(120)
def test_a_short_outage_is_told_bridged_and_made_up_for(tmp_path: Path) -> None:
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
    assert during["told_after_seconds"] is not None
    assert during["live_after_seconds"] is not None
    assert before["told_after_seconds"] is after["told_after_seconds"] is None
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
def test_whatever_goes_astray_fails_the_run(fault: dict[str, int | None]) -> None:
    assert GOOD.is_clean
    assert not msgspec.structs.replace(GOOD, **fault).is_clean


def test_the_slowdown_is_of_the_job_with_the_outage() -> None:
    runs = [GOOD, Run("valkey", 0.0, 8.0), Run("valkey", 0.0, 12.0)]
    assert slowdown(runs) == 1.0
    assert slowdown([*runs, Run("valkey", 3.0, 12.0)]) == 1.1


def test_what_a_later_event_stands_for_is_merged_and_what_comes_again_is_seen() -> None:
    watching, view = Watching(), View("job:1")

    def told(offset: int, *offsets: int) -> None:
        view.offset = offset
        watching._note(Update("live", view, [{"offset": each} for each in offsets]), "1")

    told(2, 1, 2)
    assert watching.merged == 0
    told(7, 5, 7)
    assert watching.merged == 3
    told(7)
    assert (watching.merged, watching.place, watching.offsets) == (3, 7, [1, 2, 5, 7])


def test_only_after_an_outage_events_may_be_merged() -> None:
    merged = msgspec.structs.replace(GOOD, merged=9)
    assert merged.is_clean
    assert not msgspec.structs.replace(merged, outage_seconds=0.0).is_clean
