"""The rows of the backend matrix, their servers, and files of node's tests, for all tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

from semantik_realtime.backends.loader import backend_names
from semantik_realtime.testing.servers import ROWS, Server, ServerMissing, backend_url, running

REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
NODE_SECONDS = 110
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# How long an example takes says how busy the machine is, and nothing about the code.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


# A test of a backend's behaviour is marked `every_row` and runs on each row of the matrix. A slow
# one is marked `every_backend` and runs on the first row of each backend. Every other test runs on
# one row. `tox -e backend-nats` runs the tests with the mark of the row nats.


def pytest_configure(config: pytest.Config) -> None:
    where = "(shares_storage=False): runs on {}; with shares_storage where several processes can"
    for name, rows in (("every_row", "each row"), ("every_backend", "a row of each backend")):
        config.addinivalue_line("markers", name + where.format(rows))
    for row in ROWS:
        config.addinivalue_line("markers", f"{row}: needs the {row} row of the backend matrix")
        config.addinivalue_line("markers", f"backend-{row}: run by tox -e backend-{row}")
    config.addinivalue_line("markers", "matrix: run by one of those")
    config.addinivalue_line("markers", "browser: needs chromium and playwright")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers()
    mark = next((mark for mark in marks if mark.name in ("every_row", "every_backend")), None)
    if mark is None:
        return
    names = list(ROWS)
    if mark.name == "every_backend":
        names = list({ROWS[name].backend: name for name in reversed(names)}.values())
    if mark.kwargs.get("shares_storage"):
        names = [name for name in names if ROWS[name].shares_storage]
    if "server" in metafunc.fixturenames:
        names = [name for name in names if ROWS[name].make_server]
    rows = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in names]
    metafunc.parametrize("row", rows, indirect=True, scope="module")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for row in ROWS:
            if item.get_closest_marker(row):
                item.add_marker(f"backend-{row}")
                item.add_marker("matrix")


@pytest.fixture(scope="module")
def default_row() -> str:
    """The row of a test without a mark."""
    return "valkey"


@pytest.fixture(scope="module")
def row(request: pytest.FixtureRequest, default_row: str) -> Iterator[str]:
    """The row of the backend matrix that the test runs on."""
    name: str = getattr(request, "param", default_row)
    backend = ROWS[name].backend
    if backend not in backend_names():
        folder = f"plugins/semantik-realtime-{backend}"
        pytest.skip(f"the {backend} backend is missing: pip install ./{folder}")
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in ROWS[name].environment.items():
            patch.setenv(variable, value)
        yield name


@pytest.fixture(scope="session")
def server_url() -> Iterator[Callable[[str], str]]:
    """Return the URL of a running server for a row; one server for each row and session.

    With TEST_REDIS_URL the row ``redis`` is that server, and none is started for it.
    """
    urls: dict[str, str] = {}
    if given := os.environ.get("TEST_REDIS_URL"):
        urls["redis"] = given
    with contextlib.ExitStack() as stack:

        def start(row: str) -> str:
            if row not in urls:
                with skipping_if_missing():
                    urls[row] = stack.enter_context(backend_url(row)) or ""
            return urls[row]

        yield start


@pytest.fixture
def server(row: str) -> Iterator[Server]:
    """A running server of the test's own, which the test may kill, pause and start again."""
    make_server = ROWS[row].make_server
    assert make_server is not None
    with skipping_if_missing():
        made = make_server()
    with running(made):
        yield made


@contextlib.contextmanager
def skipping_if_missing() -> Iterator[None]:
    """Skip the test if the server is not installed."""
    try:
        yield
    except ServerMissing as error:
        pytest.skip(str(error))


# With REQUIRE_ALL=1 a skip is a failure, of a test and of a whole file.


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


# A file of node's tests is one test of pytest, so that one report and one rule for skips hold.


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.name.endswith((".test.js", ".test.mjs")):
        return NodeFile.from_parent(parent, path=file_path)
    return None


class NodeFile(pytest.File):
    """A file of tests for ``node --test``."""

    def collect(self) -> Iterator[pytest.Item]:
        yield NodeTests.from_parent(self, name="node")


class NodeTests(pytest.Item):
    """All tests of a file. A failure shows the output of node."""

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
    """The output of node."""
