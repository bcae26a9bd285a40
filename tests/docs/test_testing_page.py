"""The files of docs/testing.md run as printed, in a folder that has nothing else."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
FILES = re.findall(r"^```python\n# (\w+\.py)(.*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's files. What comes further down in a file is a section of its own."""
    for name, further, text in FILES:
        if not further:
            (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def production() -> Iterator[socket.socket]:
    """A server that no test of a host may reach: nobody accepts, so each connection stays."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def run_pytest(folder: Path, production: socket.socket, *options: str) -> str:
    """Run the tests as a stranger does, on a machine that is set up for production."""
    url = f"redis://127.0.0.1:{production.getsockname()[1]}/0"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "SEMANTIK_REALTIME_URL": url,
            "SEMANTIK_REALTIME_MIRROR": "false",
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.raises(BlockingIOError):
        production.accept()
    return done.stdout


def test_the_tests_of_the_page_pass_without_any_server(
    folder: Path, production: socket.socket
) -> None:
    tests = re.findall(r"^def test_\w+", PAGE, re.MULTILINE)
    assert len(tests) >= 6
    assert f"{len(tests)} passed" in run_pytest(folder, production)


def test_they_pass_with_the_further_fixtures_and_in_several_processes(
    folder: Path, production: socket.socket
) -> None:
    further = [text for name, more, text in FILES if more]
    assert len(further) == 2
    with (folder / "conftest.py").open("a") as conftest:
        conftest.write("\n\n".join(["", *further]))
    run_pytest(folder, production, "-n", "2", "test_tasks.py", "test_web.py")


def test_the_table_names_what_the_fixture_has() -> None:
    from semantik_realtime.pytest_plugin import RealtimeFixture

    named = set(re.findall(r"^\| `(?:await )?realtime\.(\w+)", PAGE, re.MULTILINE))
    public = {name for name in vars(RealtimeFixture) if not name.startswith("_")}
    assert named == public
