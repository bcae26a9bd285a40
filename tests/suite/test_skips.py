"""With REQUIRE_ALL=1 a skipped test fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = {
    "test_a_test.py": "import pytest\ndef test_it(): pytest.skip('no chromium')",
    "test_a_mark.py": "import pytest\n@pytest.mark.skip(reason='no chromium')\ndef test_it(): ...",
    "test_a_fixture.py": (
        "import pytest\n@pytest.fixture\ndef page(): pytest.skip('no chromium')\n"
        "def test_it(page): ..."
    ),
    "test_a_file.py": "import pytest\npytest.skip('no chromium', allow_module_level=True)",
}


def run_pytest(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "REQUIRE_ALL"}
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-ra", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    for name, text in SKIPS.items():
        (tmp_path / name).write_text(text)
    # Without a PATH there is no node.
    (tmp_path / "one.test.js").write_text("")
    return tmp_path


def test_a_skip_names_what_is_missing(folder: Path) -> None:
    ran = run_pytest(folder, PATH="")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 skipped" in ran.stdout
    assert "node is missing: apt-get install nodejs" in ran.stdout


def test_a_skip_is_a_failure_where_everything_is_required(folder: Path) -> None:
    ran = run_pytest(folder, PATH="", REQUIRE_ALL="1")
    assert ran.returncode == 1
    assert "2 failed, 3 errors in" in ran.stdout
    assert "nothing may be skipped. Skipped: no chromium" in ran.stdout
    assert "nothing may be skipped. Skipped: node is missing" in ran.stdout


def test_a_failure_under_node_is_a_failure_here(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "one.test.mjs").write_text(
        "import test from 'node:test'; test('one', () => { throw new Error('so it is') });"
        "test('two', { skip: true }, () => {});"
    )
    ran = run_pytest(tmp_path)
    if "node is missing" in ran.stdout:
        pytest.skip("node is missing: apt-get install nodejs (20 or newer)")
    assert ran.returncode == 1
    assert "so it is" in ran.stdout
