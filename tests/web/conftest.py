"""Settings, a publisher and a running web server for each test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from configuration import make_settings
from publisher import Publisher
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS

# `tox -e lowest` installs what it needs.
collect_ignore = [] if "OLD_WEBSOCKETS" in os.environ else ["test_old_host.py"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse a subscription soon; servers in processes of their own wait as long as always."""
    monkeypatch.setattr("semantik_realtime.web.hub.permission.WAIT_SECONDS", 0.3)


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, row: str, server_url: Callable[[str], str]
) -> Settings:
    """Default settings over the row's shared server, changed by the module's ``SETTINGS``."""
    changes = getattr(request.module, "SETTINGS", {})
    return make_settings(server_url(row), backend=ROWS[row].backend, **changes)


@pytest.fixture
def publisher(request: pytest.FixtureRequest, row: str, settings: Settings) -> Iterator[Publisher]:
    """Writes as another process does; where processes share no topics, as the web server itself."""
    rt = None if ROWS[row].shares_storage else request.getfixturevalue("web_server").rt
    made = Publisher(settings, rt)
    yield made
    made.close()


@pytest.fixture
async def web_server(settings: Settings) -> AsyncIterator[InProcessServer]:
    async with serve_realtime(settings) as made:
        yield made
