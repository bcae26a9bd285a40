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


def test_a_page_of_another_origin_learns_in_the_console_which_setting_decides(
    prefixes_port: int, chromium: Browser
) -> None:
    page = chromium.new_page()
    lines: list[str] = []
    page.on("console", lambda message: lines.append(message.text))
    origin = f"http://elsewhere.example:{prefixes_port}"
    page.goto(f"{origin}/pages/index.html")
    denied = page.evaluate(
        """async (url) => {
          const { connect } = await import("/realtime/static/realtime.js");
          const live = connect({ url, storage: null });
          const refused = new Promise((onDenied) => live.watch("job:2", { onDenied }));
          return Promise.race([refused, new Promise((end) => setTimeout(end, 20000))]);
        }""",
        f"http://127.0.0.1:{prefixes_port}/realtime/ws",
    )
    assert denied["code"] == "forbidden"
    [line] = [line for line in lines if line.startswith("realtime: ")]
    for part in ("4403", "SEMANTIK_REALTIME_ALLOWED_ORIGINS", origin):
        assert part in line
    page.close()
