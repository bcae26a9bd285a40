"""Fixtures: real servers, each killed by its own process id, and backends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from semantik_realtime.config import load_settings
from semantik_realtime.testing.servers import NatsServer, ServerMissing, nats_program

from semantik_realtime_nats.backend import NatsBackend


def make_server(**options: Any) -> NatsServer:
    """Return a server that is not started."""
    try:
        return NatsServer(nats_program(), **options)
    except ServerMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The URL of a running server that tests share."""
    server = make_server()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


@pytest.fixture
def start_server() -> Iterator[Callable[..., NatsServer]]:
    """A function that starts a server for one test."""
    servers: list[NatsServer] = []

    def start(**options: Any) -> NatsServer:
        server = make_server(**options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.remove()


@pytest.fixture
def server(start_server: Callable[..., NatsServer]) -> NatsServer:
    """A running server for one test, which may kill it."""
    return start_server()


@pytest.fixture
async def make_backend() -> AsyncIterator[Callable[..., NatsBackend]]:
    """A function that makes backends, which are closed after the test."""
    made: list[NatsBackend] = []

    def make(url: str, **settings: Any) -> NatsBackend:
        backend = NatsBackend(load_settings(backend="nats", url=url, **settings))
        made.append(backend)
        return backend

    yield make
    for backend in made:
        await backend.close()
        backend.close_writer()
