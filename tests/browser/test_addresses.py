"""A page finds the server's WebSocket from where it has loaded the client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from programs import running_programs, wait_until_healthy

from semantik_realtime.testing.servers import free_port

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parent),
        "ENVIRONMENT": "development",
        "DISABLE_AUTH": "1",
        "SEMANTIK_REALTIME_BACKEND": "memory",
    }
    command = ["uvicorn", "addresses_host:app", "--port", str(port)]
    with running_programs(tmp_path_factory.mktemp("host"), (environment, command)):
        wait_until_healthy(f"127.0.0.1:{port}")
        yield port


@pytest.mark.parametrize("base", ["", "/api/v1", "/mounted", "/proxied"])
def test_the_client_connects_beside_the_folder_that_it_was_loaded_from(
    base: str, port: int, chromium: Browser
) -> None:
    page = chromium.new_page()
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.goto(f"http://127.0.0.1:{port}/pages{base}/index.html")
    expect(page.locator("output")).to_have_text("job:1", timeout=20_000)
    assert sockets == [f"ws://127.0.0.1:{port}{base}/realtime/ws"]
    page.close()
