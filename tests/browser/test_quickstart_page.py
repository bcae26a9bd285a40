"""The page of docs/quickstart.md in a real browser does what that page says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from programs import wait_for
from walkthrough import QUICKSTART, walked

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

START_MS = 30_000
JOB_MS = 60_000
FILES = 40


@pytest.fixture
def address(tmp_path: Path, server_url: Callable[[str], str]) -> Iterator[str]:
    """Where the quickstart's web server is; its worker runs too."""
    with walked(QUICKSTART, tmp_path, server_url("valkey")) as client:
        yield str(client.base_url)


def open_window(window: Page, address: str) -> Page:
    window.set_default_timeout(START_MS)
    window.goto(address)
    return window


def files_of(window: Page) -> list[str]:
    return window.locator("li").all_inner_texts()


def expect_whole_job(window: Page) -> None:
    expect(window.locator("span")).to_contain_text("completed", timeout=JOB_MS)
    expect(window.locator("progress")).to_have_js_property("value", 1)
    assert files_of(window) == [f"{number}.txt" for number in range(FILES)]


def test_the_bar_continues_after_a_reload_and_in_a_second_window(
    address: str, chromium: Browser, shots: Path | None
) -> None:
    context = chromium.new_context(viewport={"width": 640, "height": 480})
    page = open_window(context.new_page(), address)
    waiting = open_window(context.new_page(), address)
    page.get_by_role("button").click()
    expect(page.locator("li")).not_to_have_count(0, timeout=JOB_MS)
    before = files_of(page)
    page.reload()
    # Each file of before is listed again, once.
    page.wait_for_function(
        "count => document.querySelectorAll('li').length >= count", arg=len(before)
    )
    expect(page.locator("span")).to_contain_text("running")
    assert files_of(page)[: len(before)] == before
    if shots:
        page.screenshot(path=shots / "quickstart-reloaded.png")
    second = open_window(context.new_page(), address)
    # A window that was open before the job began shows it too.
    for window in (page, second, waiting):
        expect_whole_job(window)
    context.close()


def test_twelve_windows_of_a_finished_job_all_show_it(address: str, chromium: Browser) -> None:
    context = chromium.new_context()
    lines: list[str] = []
    context.on("console", lambda message: lines.append(message.text))
    page = open_window(context.new_page(), address)
    page.get_by_role("button").click()
    expect_whole_job(page)
    # A user has ten connections at a time.
    windows = [open_window(context.new_page(), address) for _ in range(12)]
    for window in windows:
        expect_whole_job(window)
    assert not [line for line in lines if "4429" in line]
    # Nobody keeps a connection for a job that has ended.
    wait_for(lambda: httpx.get(f"{address}/realtime/health").json()["connections"] == 0)
    context.close()


def test_the_console_says_what_to_set_where_the_server_needs_a_credential(
    tmp_path: Path, server_url: Callable[[str], str], chromium: Browser
) -> None:
    refusing = QUICKSTART.replace("DISABLE_AUTH=1", "JWT_SECRET_KEY=" + "s" * 32)
    with walked(refusing, tmp_path, server_url("valkey")) as client:
        page = chromium.new_page()
        lines: list[str] = []
        page.on("console", lambda message: lines.append(message.text))
        open_window(page, str(client.base_url))
        page.get_by_role("button").click()
        # Within the 10 s in which the server would wait for a credential.
        expect(page.locator("span")).to_contain_text("credential", timeout=8_000)
        hints = [line for line in lines if line.startswith("realtime: ")]
        assert len(hints) == 1
        assert "4401" in hints[0]
        assert "DISABLE_AUTH=1" in hints[0]
        page.close()
