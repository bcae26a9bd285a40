"""A page finds the server's WebSocket from where it has loaded the client."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


@pytest.mark.parametrize("base", ["", "/api/v1", "/mounted", "/proxied"])
def test_the_client_connects_beside_the_folder_that_it_was_loaded_from(
    base: str, prefixes_port: int, chromium: Browser
) -> None:
    page = chromium.new_page()
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.goto(f"http://127.0.0.1:{prefixes_port}/pages{base}/index.html")
    expect(page.locator("output")).to_have_text("job:1", timeout=20_000)
    assert sockets == [f"ws://127.0.0.1:{prefixes_port}{base}/realtime/ws"]
    page.close()
