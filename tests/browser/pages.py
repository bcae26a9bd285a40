"""Steps of a user at the page, and of a program at the HTTP interface."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from playwright.sync_api import Browser, Error, Locator, Page, expect
from webui import Webui

START_MS = 30_000
JOB_MS = 90_000
RESPONSE_SECONDS = 20


def open_page(browser: Browser, webui: Webui, connection: str = "live", **options: Any) -> Page:
    """Log in on a page in a browser context of its own."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(START_MS)
    load(page, webui)
    log_in(page, webui)
    expect_connection(page, connection)
    return page


def load(page: Page, webui: Webui) -> None:
    """Load the page as soon as the server responses."""
    for _ in range(300):
        try:
            page.goto(webui.address)
            return
        except Error:
            page.wait_for_timeout(100)
    raise AssertionError(f"no response from {webui.address}")


def log_in(page: Page, webui: Webui) -> None:
    page.get_by_test_id("username").fill("demo")
    page.get_by_test_id("password").fill(webui.password)
    page.get_by_test_id("login").click()


def expect_connection(page: Page, state: str) -> None:
    badge = page.get_by_test_id("connection")
    expect(badge).to_have_attribute("data-state", state, timeout=START_MS)


def start_job(page: Page) -> Locator:
    """Index everything; return the job's card once the job is running."""
    page.get_by_test_id("start-all").click()
    job = page.get_by_test_id("job").first
    expect(job).to_have_attribute("data-status", "running", timeout=START_MS)
    return job


def wait_for_bar(page: Page, least: int, job: str = "") -> None:
    """Wait until the bar of a job, the newest by default, is at ``least`` percent."""
    page.wait_for_function(
        """([least, job]) => {
          const card = document.querySelector(job ? `[data-job-id="${job}"]` : '[data-job-id]');
          const bar = card && card.querySelector('[data-testid=bar]');
          return bar && Number(bar.getAttribute('aria-valuenow')) >= least;
        }""",
        arg=[least, job],
        timeout=JOB_MS,
    )


def api(webui: Webui, path: str, body: Any = None) -> Any:
    """Return the web server's response to the demo's user."""
    login = {"username": "demo", "password": webui.password}
    token = _call(webui, "/api/login", login)["token"]
    return _call(webui, path, body, token)


def _call(webui: Webui, path: str, body: Any = None, token: str | None = None) -> Any:
    headers = {"Content-Type": "application/json", "X-Requested-With": "test"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(webui.address + path, data, headers)
    with urllib.request.urlopen(request, timeout=RESPONSE_SECONDS) as response:
        return json.load(response)
