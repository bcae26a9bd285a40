"""The backend matrix: a row is added in one table and one list, and marked tests run on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from semantik_realtime.testing.servers import ROWS

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.every_row
def test_row(row): ...

@pytest.mark.every_row(shares_storage=True)
def test_shared(row): ...

@pytest.mark.every_backend
def test_backend(row): ...

@pytest.mark.every_backend
def test_own_server(row, server): ...

def test_plain(row): ...
"""


def test_no_two_files_of_tests_have_the_same_name() -> None:
    """A row runs several folders at once, and pytest imports a file by its name alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_each_row_has_a_tox_environment() -> None:
    [rows] = re.findall(r"^ +backend-\{(.+)\}$", (ROOT / "tox.ini").read_text(), re.MULTILINE)
    assert sorted(rows.split(",")) == sorted(ROWS)


@pytest.mark.parametrize(
    ("check", "names"),
    [
        ("not matrix", {"plain"}),
        ("backend-memory", {"row[memory]", "backend[memory]"}),
        ("backend-redis", {"row[redis]", "shared[redis]"}),
        (
            "backend-nats",
            {"row[nats]", "shared[nats]", "backend[nats]", "own_server[nats]"},
        ),
        ("backend-nats-r3", {"row[nats-r3]", "shared[nats-r3]"}),
    ],
)
def test_each_check_runs_the_tests_that_are_marked_for_it(
    tmp_path: Path, check: str, names: set[str]
) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers")
    (tmp_path / "test_rows.py").write_text(TESTS)
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-qm", check],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert set(re.findall(r"::test_(\S+)", listed.stdout)) == names, listed.stdout
