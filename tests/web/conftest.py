"""A settings factory, a publisher and a running site for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from fleet import Here, Publisher, make_settings, site_of

from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS


@pytest.fixture
def settings(row: str, server_url: Callable[[str], str]) -> Settings:
    """Default settings over the row's shared server, with keys of the test's own."""
    return make_settings(server_url(row), backend=ROWS[row].backend)


@pytest.fixture
def publisher(request: pytest.FixtureRequest, row: str, settings: Settings) -> Iterator[Publisher]:
    """Writes as another process would; where none shares the topics, as the site itself."""
    rt = None if ROWS[row].shares_storage else request.getfixturevalue("site").rt
    made = Publisher(settings, rt)
    yield made
    made.close()


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Here]:
    async with site_of(settings) as here:
        yield here
