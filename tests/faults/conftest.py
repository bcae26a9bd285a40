"""The clients and servers of the web tests, over a broker that may be broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))

from fleet import Publisher, make_settings

from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS, Server


@pytest.fixture
def without_tops() -> None:
    """Nobody looks for lost tails: what is to be found must be found otherwise."""


@pytest.fixture
def settings(row: str, server: Server, request: pytest.FixtureRequest) -> Settings:
    """Impatient: what takes 5 s or 10 s by default takes 1 s."""
    tops_seconds = 3600.0 if "without_tops" in request.fixturenames else 1.0
    return make_settings(
        server.url, backend=ROWS[row].backend, timeout_seconds=1.0, tops_seconds=tops_seconds
    )


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    made = Publisher(settings)
    yield made
    made.close()
