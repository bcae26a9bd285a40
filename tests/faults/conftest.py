"""Settings and a publisher over a broker of the test's own, which the test may break."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))

from clocked import Arrivals, Load
from configuration import make_settings
from publisher import Publisher
from record import Record
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS, Server


@pytest.fixture
def without_tops() -> None:
    """Switch the look at the tops off, so that a loss must be found in another way."""


@pytest.fixture
def quick_recalls() -> None:
    """Read the host's record twice a second, and start after one try."""


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    """The host's record, in which job 1 runs."""
    made = Record(tmp_path)
    made.write("1", {"status": "running", "attempt": 1})
    yield made
    made.close()


@pytest.fixture
async def web_server(settings: Settings, record: Record) -> AsyncIterator[InProcessServer]:
    """A web server whose host has a record."""
    async with serve_realtime(settings, plugins=[record]) as made:
        yield made


@pytest.fixture
def settings(row: str, server: Server, request: pytest.FixtureRequest) -> Settings:
    """Settings with deadlines of 1 s in place of 5 s and 10 s."""
    tops_seconds = 3600.0 if "without_tops" in request.fixturenames else 1.0
    quick = {"recall_seconds": 0.5}
    return make_settings(
        server.url,
        backend=ROWS[row].backend,
        timeout_seconds=1.0,
        tops_seconds=tops_seconds,
        **(quick if "quick_recalls" in request.fixturenames else {}),
    )


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    made = Publisher(settings)
    yield made
    made.close()


# For the tests of engines that lose nodes: with the topics of their module.


@pytest.fixture
async def client(
    request: pytest.FixtureRequest, web_server: InProcessServer
) -> AsyncIterator[Arrivals]:
    async with Arrivals(web_server, *request.module.TOPICS) as made:
        yield made


@pytest.fixture
def load(request: pytest.FixtureRequest, publisher: Publisher) -> Load:
    return Load(publisher, request.module.TOPICS)
