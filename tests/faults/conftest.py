"""The clients and servers of the web tests, over a Redis that may be broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))

from fleet import Publisher, make_settings

from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import (
    RedisServer,
    ServerMissing,
    running,
    valkey_program,
)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of the test's own, with everything written to disk at once."""
    try:
        program = valkey_program()
    except ServerMissing as error:
        pytest.skip(str(error))
    with running(RedisServer(program)) as running_server:
        yield running_server


@pytest.fixture
def without_tops() -> None:
    """Nobody looks for lost tails: what is to be found must be found otherwise."""


@pytest.fixture
def settings(server: RedisServer, request: pytest.FixtureRequest) -> Settings:
    """Impatient: what takes 5 s or 10 s by default takes 1 s."""
    tops_seconds = 3600.0 if "without_tops" in request.fixturenames else 1.0
    return make_settings(server.url, timeout_seconds=1.0, tops_seconds=tops_seconds)


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    made = Publisher(settings)
    yield made
    made.close()
