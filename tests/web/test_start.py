"""The start of a web server whose backend refuses connections, or accepts and never answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from clients import NativeClient
from configuration import make_settings
from fastapi import FastAPI
from publisher import Publisher
from starlette.testclient import TestClient
from web_servers import serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS, Server


@pytest.fixture(params=["refuses", "hangs"])
def away(request: pytest.FixtureRequest, row: str, server: Server) -> Iterator[Settings]:
    """Settings with the default deadlines, over a server that is away."""
    hangs = request.param == "hangs"
    if hangs:
        server.pause()
    else:
        server.kill()
    yield make_settings(server.url, backend=ROWS[row].backend)
    if hangs:
        server.resume()


@pytest.mark.every_backend
def test_an_application_starts_at_once_while_the_backend_is_away(away: Settings) -> None:
    app = FastAPI()
    Realtime(away).install(app)
    began = time.monotonic()
    with TestClient(app) as http:
        assert time.monotonic() - began < 3
        health = http.get("/realtime/health").json()
        assert time.monotonic() - began < 4
        assert health["degraded_since"]
        assert not health["backend"]["reachable"]
    assert time.monotonic() - began < 6


@pytest.mark.every_backend
def test_the_log_names_the_masked_url_and_the_setting_once(
    away: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    secret: Any = away.url
    if secret.startswith("redis:"):
        secret = secret.replace("redis://", "redis://:secret@")
    Realtime(away.model_copy(update={"url": secret})).install(app)
    with TestClient(app) as http:
        http.get("/realtime/health")
    lines = [r.getMessage() for r in caplog.records if "the backend is away" in r.getMessage()]
    assert len(lines) == 1
    assert secret.rpartition("@")[2].removeprefix("nats://") in lines[0]
    assert "SEMANTIK_REALTIME_URL" in lines[0]
    assert "secret" not in caplog.text


@pytest.mark.every_backend
async def test_after_a_start_beside_a_hanging_backend_watchers_are_served_once_it_answers(
    row: str, server: Server
) -> None:
    settings = make_settings(server.url, backend=ROWS[row].backend)
    publisher = Publisher(settings)
    server.pause()
    try:
        async with (
            serve_realtime(settings) as web_server,
            NativeClient(web_server, "user:7") as client,
        ):
            await client.wait_for("degraded")
            assert not client.syncs
            server.resume()
            await client.wait_for("restored", seconds=20)
            await client.wait_synced()
            await publisher.publish("user:7", 3)
            await client.wait_for_offset("user:7", 3)
            assert client.numbers("user:7") == [0, 1, 2]
            assert client.connections == 1
    finally:
        server.resume()
        publisher.close()
