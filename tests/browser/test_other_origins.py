"""Pages that no proxy brings to the server's origin: of another local port, and of another host."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

USE = """async (server) => {
  const { connect } = await import(`${server}/realtime/static/realtime.js`);
  const watching = new Promise((resolve) =>
    connect({ storage: null }).watch("job:1", { onChange: (view) => resolve(view.topic) }));
  const headers = { "If-None-Match": '"none"', "Authorization": "Bearer x" };
  const job = await fetch(`${server}/realtime/jobs/1`, { headers, credentials: "include" });
  const source = new EventSource(`${server}/realtime/jobs/1/events`, { withCredentials: true });
  const frame = await new Promise((resolve) => (source.onmessage = (event) => resolve(event)));
  source.close();
  return [await watching, (await job.json()).topic, JSON.parse(frame.data).op];
}"""

OPEN = """(url) => new Promise((resolve) => {
  new WebSocket(url).onclose = ({ code, reason }) => resolve([code, reason]);
})"""


def open_at(chromium: Browser, origin: str) -> Page:
    """Open an empty page of ``origin``, which needs no server."""
    try:
        # Newer browsers count such a page as one of the Internet, and ask the user first.
        page = chromium.new_context(permissions=["local-network-access"]).new_page()
    except Error:
        page = chromium.new_page()
    page.route(f"{origin}/**", lambda route: route.fulfill(body="<p>", content_type="text/html"))
    page.goto(f"{origin}/index.html")
    return page


def test_a_page_of_another_local_port_uses_every_part_without_a_proxy(
    prefixes_port: int, chromium: Browser
) -> None:
    server = f"http://localhost:{prefixes_port}"
    publishing = chromium.new_page()
    publishing.goto(f"{server}/publish/job_started")
    publishing.close()
    page = open_at(chromium, "http://localhost:5173")
    used: Any = page.evaluate(USE, server)
    assert used == ["job:1", "job:1", "sync"]
    page.context.close()


def test_a_page_of_another_host_can_read_nothing_and_reads_why(
    prefixes_port: int, chromium: Browser
) -> None:
    page = open_at(chromium, "https://page.example")
    url = f"http://localhost:{prefixes_port}/realtime/jobs/1"
    assert page.evaluate("(url) => fetch(url).then(() => 'read', () => 'not read')", url) == (
        "not read"
    )
    [code, reason] = page.evaluate(OPEN, f"ws://localhost:{prefixes_port}/realtime/ws")
    assert code == 4403
    assert reason == "SEMANTIK_REALTIME_ALLOWED_ORIGINS does not have https://page.example"
    page.context.close()
