"""The page in a real browser, through reloads and a restart of the web server."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import JOB_MS, START_MS, api, load, log_in, open_page, start_job, wait_for_bar
from playwright.sync_api import Browser, Page, expect
from webui import DOCUMENTS, Webui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

COLLECT_BARS = """
window.seenBars = [];
new MutationObserver(() => {
  const bar = document.querySelector('[data-testid=bar]');
  const now = bar && bar.getAttribute('aria-valuenow');
  if (now !== null) window.seenBars.push(Number(now));
}).observe(document, {subtree: true, childList: true, attributes: true});
"""


def bar_of(page: Page) -> int:
    value = page.get_by_test_id("bar").first.get_attribute("aria-valuenow")
    return int(float(value or 0))


def test_a_job_is_shown_live_through_a_reload_and_a_killed_web_server(
    webui: Webui, chromium: Browser, shots: Path | None
) -> None:
    page = open_page(chromium, webui, viewport={"width": 1280, "height": 900})
    page.context.add_init_script(COLLECT_BARS)
    page.reload()
    job = start_job(page)
    job_id = job.get_attribute("data-job-id")

    wait_for_bar(page, 15)
    if shots:
        page.screenshot(path=shots / "1-running.png")
    before_reload = bar_of(page)
    page.reload()
    expect(page.get_by_test_id("connection")).to_have_attribute("data-state", "live")
    # The feed arrives first but has progress only twice a second; the job's own topic catches up.
    wait_for_bar(page, before_reload)
    wait_for_bar(page, 40)

    webui.web.kill()
    expect(page.get_by_test_id("connection")).to_have_attribute("data-state", "reconnecting")
    if shots:
        page.screenshot(path=shots / "2-reconnecting.png")
    while_away = bar_of(page)
    webui.start_web()
    expect(page.get_by_test_id("connection")).to_have_attribute(
        "data-state", "live", timeout=START_MS
    )
    wait_for_bar(page, while_away)

    expect(job).to_have_attribute("data-status", "completed", timeout=JOB_MS)
    assert bar_of(page) == 100
    seen = page.evaluate("window.seenBars")
    assert seen == sorted(seen), "the bar moved back"
    # How many it saw live depends on how long the server took to start.
    assert len([bar for bar in set(seen) if bar <= while_away]) > 3, "the bar jumped"
    record = api(webui, f"/api/jobs/{job_id}")
    assert record["state"]["status"] == "completed"
    assert record["state"]["fields"]["processed_files"] == DOCUMENTS
    expect(job).to_contain_text(str(DOCUMENTS))
    offsets = (
        page.get_by_test_id("events")
        .first.locator("[data-offset]")
        .evaluate_all("items => items.map(item => Number(item.dataset.offset))")
    )
    assert len(offsets) == len(set(offsets)) > 0
    assert offsets in (sorted(offsets), sorted(offsets, reverse=True))
    if shots:
        page.screenshot(path=shots / "3-completed.png", full_page=True)

    page.get_by_test_id("search").fill("snapshot cursor")
    expect(page.get_by_test_id("result").first).to_be_visible()
    expect(page.get_by_test_id("result").first.locator("mark").first).to_be_visible()
    if shots:
        page.screenshot(path=shots / "4-search.png")
    page.context.close()


def test_a_phone_shows_the_page_without_scrolling_sideways(
    webui: Webui, chromium: Browser, shots: Path | None
) -> None:
    page = open_page(chromium, webui, viewport={"width": 360, "height": 740}, color_scheme="dark")
    start_job(page)
    wait_for_bar(page, 10)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    expect(page.get_by_test_id("bar").first).to_be_visible()
    if shots:
        page.screenshot(path=shots / "5-phone.png")
    page.context.close()


def test_two_pages_of_one_user_show_the_same_job(webui: Webui, chromium: Browser) -> None:
    first = open_page(chromium, webui)
    second = open_page(chromium, webui)
    start_job(first)
    wait_for_bar(second, 5)
    for page in (first, second):
        expect(page.get_by_test_id("job").first).to_have_attribute(
            "data-status", "completed", timeout=JOB_MS
        )
        page.context.close()


def test_the_page_sends_requests_to_its_own_host_only(webui: Webui, chromium: Browser) -> None:
    context = chromium.new_context()
    page = context.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: faults.append(message.text) if "Content Security" in message.text else None,
    )
    load(page, webui)
    log_in(page, webui)
    expect(page.get_by_test_id("connection")).to_have_attribute("data-state", "live")
    start_job(page)
    assert requested
    assert [url for url in requested if not url.startswith((webui.address, "data:"))] == []
    assert faults == []
    context.close()
