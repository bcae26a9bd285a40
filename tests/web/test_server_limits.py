"""A web server that keeps too much of a stranger's message is named in the log."""

from __future__ import annotations

from typing import Any

import pytest
import uvicorn
from clients import NativeClient, refusal
from fastapi import FastAPI
from packaging.version import Version
from starlette.types import ASGIApp, Receive, Scope, Send
from waiting import until
from web_servers import serve

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.web import server_limits

LINE = "websocket: the server keeps too much of a message"


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    made = FastAPI()
    Realtime(settings).install(made)
    return made


async def lines(app: ASGIApp, caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    """Connect twice, and return what the server was warned about."""
    async with serve(app, **options) as web_server:
        await refusal(web_server.native_url + "?token=x")
        await refusal(web_server.compat_url("1") + "?token=x")
    return [line for record in caplog.records if LINE in (line := record.getMessage())]


LIBRARIES = [
    name for name in ("websockets", "websockets-sansio") if name in uvicorn.config.WS_PROTOCOLS
]


@pytest.mark.parametrize("library", LIBRARIES)
async def test_uvicorns_default_size_is_one_warning_with_the_option(
    app: FastAPI, caplog: pytest.LogCaptureFixture, library: str
) -> None:
    [line] = await lines(app, caplog, ws=library, ws_max_size=2**24)
    assert "16777216 bytes" in line
    assert "--ws-max-size 65536" in line


@pytest.mark.parametrize("library", LIBRARIES)
async def test_the_documented_size_is_no_warning(
    app: FastAPI, caplog: pytest.LogCaptureFixture, library: str
) -> None:
    assert await lines(app, caplog, ws=library) == []


async def test_wsproto_is_a_warning_while_it_decompresses(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    [line] = await lines(app, caplog, ws="wsproto")
    assert "--ws auto" in line


async def test_wsproto_without_compression_is_a_warning_only_with_an_old_uvicorn(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    found = await lines(app, caplog, ws="wsproto", ws_per_message_deflate=False)
    assert len(found) == (Version(uvicorn.__version__) < Version("0.46"))


async def test_of_an_unknown_server_nothing_is_said(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def of_another_server() -> Any:
            return await receive()

        await app(scope, of_another_server, send)

    assert await lines(wrapped, caplog, ws_max_size=2**24) == []


async def test_a_frame_above_the_servers_limit_gets_the_same_code_as_one_above_ours(
    app: FastAPI,
) -> None:
    for size in (2**16, 2**24):
        async with serve(app, ws_max_size=size) as web_server, NativeClient(web_server) as client:
            await client.wait_for("welcome")
            await client.send("x" * (2**16 + 1))
            await until(lambda client=client: client.closed)
            assert client.closed == 1009


async def test_a_uvicorn_that_does_not_wait_for_the_drain_is_one_warning(
    app: FastAPI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, warnings in (((0, 28), 1), ((0, 29), 0)):
        caplog.clear()
        monkeypatch.setattr(server_limits, "_uvicorn_version", lambda version=version: version)
        app.state.realtime.web.server_limits = server_limits.ServerLimits()
        await lines(app, caplog)
        found = [record.getMessage() for record in caplog.records]
        assert sum("uvicorn before 0.29" in line for line in found) == warnings
