"""A settings factory, a publisher and a running site for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from fleet import Here, Publisher, make_settings, site_of

from semantik_realtime.config import Settings


@pytest.fixture
def settings(server_url: Callable[[str], str]) -> Settings:
    """Default settings over the shared server, with keys of the test's own."""
    return make_settings(server_url("valkey"))


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    made = Publisher(settings)
    yield made
    made.close()


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Here]:
    async with site_of(settings) as here:
        yield here
