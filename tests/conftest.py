"""Servers for the tests: real ones, started once, ended by their own process id."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from semantik_realtime.testing.servers import ServerMissing, backend_url

ROWS = ("memory", "fakeredis", "valkey", "redis")
REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
NODE_SECONDS = 110
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure(config: pytest.Config) -> None:
    for row in ROWS:
        config.addinivalue_line("markers", f"{row}: needs the {row} row of the backend matrix")
    config.addinivalue_line("markers", "browser: needs chromium and playwright")


@pytest.fixture(scope="session")
def server_url() -> Iterator[Callable[[str], str]]:
    """The URL of a running server for a row of the matrix; one server a row and session.

    With TEST_REDIS_URL that server is the row ``redis``, and none is started for it.
    """
    urls: dict[str, str] = {}
    if given := os.environ.get("TEST_REDIS_URL"):
        urls["redis"] = given
    with contextlib.ExitStack() as stack:

        def start(row: str) -> str:
            if row not in urls:
                try:
                    urls[row] = stack.enter_context(backend_url(row)) or ""
                except ServerMissing as error:
                    pytest.skip(str(error))
            return urls[row]

        yield start


# Where everything is required, a skip is a failure: of a test, and of a whole file.


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return forbid_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return forbid_skip((yield))


def forbid_skip(report: Report) -> Report:
    """Make a skip a failure with its reason, if REQUIRE_ALL=1."""
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"with REQUIRE_ALL=1 nothing may be skipped. {reason}"
    return report


# A file of node's tests is one test here, so that there is one report and one rule for skips.


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.name.endswith((".test.js", ".test.mjs")):
        return NodeFile.from_parent(parent, path=file_path)
    return None


class NodeFile(pytest.File):
    """A file of tests for ``node --test``."""

    def collect(self) -> Iterator[pytest.Item]:
        yield NodeTests.from_parent(self, name="node")


class NodeTests(pytest.Item):
    """All tests of a file; fails with what node printed."""

    def runtest(self) -> None:
        node = shutil.which("node")
        if node is None:
            pytest.skip("node is missing: apt-get install nodejs (20 or newer)")
        ran = subprocess.run(
            [node, "--test", "--test-reporter=tap", str(self.path)],
            capture_output=True,
            text=True,
            timeout=NODE_SECONDS,
        )
        if ran.returncode != 0:
            raise NodeFailed(ran.stdout + ran.stderr)
        for line in ran.stdout.splitlines():
            if " # SKIP" in line or " # TODO" in line:
                pytest.skip(f"in {self.path.name}: {line.strip()}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:  # type: ignore[override]
        if isinstance(excinfo.value, NodeFailed):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.path.name


class NodeFailed(Exception):
    """What node printed."""
