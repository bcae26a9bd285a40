"""The benchmark of workflows counts every member, and shows what a bounded topic saves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from semantik_realtime.testing.servers import ServerMissing, valkey_program

ROOT = Path(__file__).parents[2]


@pytest.mark.valkey
def test_a_quick_run_counts_every_member(tmp_path: Path) -> None:
    try:
        valkey_program()
    except ServerMissing as error:
        pytest.skip(str(error))
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.workflow", "--quick", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    everything, counted = json.loads(file.read_text())["rows"]
    assert everything["errors"] == counted["errors"] == 0
    assert everything["most_keys"] == 401
    assert counted["most_keys"] < 201
    assert counted["server_bytes"] < everything["server_bytes"]
