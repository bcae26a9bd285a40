"""What `benchmarks.worker` counts, and which targets a row misses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.process_time import tree_seconds
from benchmarks.worker_report import OURS, UNWATCHED, CallRow, Round, make_row, report_json
from semantik_realtime.testing.servers import ServerMissing, valkey_program

ROOT = Path(__file__).parents[2]


def run_of(seconds: float, worker: float, broker: float = 1.0, backend: float = 0.0) -> Round:
    return Round(1000, seconds, worker, broker, backend)


PLAIN = [run_of(2.0, 1.0), run_of(4.0, 2.0), run_of(2.0, 1.0)]


def test_a_row_has_the_medians_of_its_rounds_beside_the_unwatched_round_of_the_same_turn() -> None:
    rounds = [run_of(2.5, 1.1, 2.0, 1.5), run_of(4.0, 2.1, 2.0, 1.4), run_of(2.0, 1.3, 2.0, 1.9)]
    row = make_row("prefork", OURS, rounds, PLAIN)
    assert row.cpu_ratios == [1.1, 1.05, 1.3]
    assert (row.cpu_ratio, row.rate_ratio, row.server_ratio) == (1.1, 1.0, 1.5)
    assert (row.worker_microseconds, row.backend_microseconds) == (1300, 1500)
    assert row.missed == []


def test_each_missed_target_is_a_sentence_and_only_ours_has_targets() -> None:
    slow = [run_of(4.0, 2.0, 1.0, 3.0), run_of(8.0, 4.0, 1.0, 3.0), run_of(4.0, 2.0, 1.0, 3.0)]
    assert make_row("threads", OURS, slow, PLAIN).missed == [
        "CPU is 2, the target is at most 1.1",
        "rate is 0.5, the target is at least 0.95",
        "the backend's CPU is 3, the target is at most 1.8",
    ]
    assert make_row("threads", "sentry", slow, PLAIN).missed == []
    assert CallRow("job.emit()", 4.9).missed == []
    assert CallRow("job.progress()", 0.3).missed == ["0.3 µs, the target is at most 0.2 µs"]


def test_the_report_says_of_each_row_with_targets_whether_they_are_met() -> None:
    rows = [make_row("prefork", name, PLAIN, PLAIN) for name in (UNWATCHED, OURS, "sentry")]
    report = json.loads(report_json(rows, [CallRow("job.emit()", 7.0)], {}))
    assert [row["is_met"] for row in report["rows"]] == [None, True, None]
    assert [row["is_met"] for row in report["calls"]] == [False]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_the_processor_time_of_a_process_has_that_of_its_children() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\n"
    program = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {spin!r}])\n"
    child = subprocess.Popen([sys.executable, "-c", program + "print(flush=True)\ninput()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    before = tree_seconds(os.getpid())
    assert child.stdout is not None
    child.stdout.readline()
    assert tree_seconds(child.pid) >= 0.3
    assert tree_seconds(os.getpid()) >= before
    child.communicate(b"\n")
    with pytest.raises(ProcessLookupError):
        tree_seconds(child.pid)


@pytest.mark.valkey
def test_a_quick_run_measures_a_watched_worker_and_loses_nothing(tmp_path: Path) -> None:
    try:
        valkey_program()
    except ServerMissing as error:
        pytest.skip(str(error))
    file = tmp_path / "worker.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.worker", "--quick", "--tasks", "40"),
            *("--pools", "threads", "--contenders", "semantik-realtime-owner"),
            *("--json", str(file)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(file.read_text())
    assert [row["contender"] for row in report["rows"]] == [UNWATCHED, f"{OURS}, owner"]
    for row in report["rows"]:
        assert row["tasks_per_second"] > 0
        assert row["worker_microseconds"] > 0
        assert (row["lost"], row["doubled"]) == (0, 0)
    assert report["rows"][1]["backend_microseconds"] > 0
    assert {row["call"] for row in report["calls"]} == {"job.progress()", "job.emit()"}
