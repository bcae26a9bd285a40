"""Settings and a publisher over a broker of the test's own, which the test may break."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))

from configuration import make_settings
from publisher import Publisher

from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS, Server


@pytest.fixture
def without_tops() -> None:
    """Switch the look at the tops off, so that a loss must be found in another way."""


@pytest.fixture
def settings(row: str, server: Server, request: pytest.FixtureRequest) -> Settings:
    """Settings with deadlines of 1 s in place of 5 s and 10 s."""
    tops_seconds = 3600.0 if "without_tops" in request.fixturenames else 1.0
    return make_settings(
        server.url, backend=ROWS[row].backend, timeout_seconds=1.0, tops_seconds=tops_seconds
    )


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    made = Publisher(settings)
    yield made
    made.close()
