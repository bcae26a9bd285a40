"""The page in a real browser while the event store is away.

On the row valkey the event store is Celery's broker too. On the row nats Celery has a Valkey of its
own, which stays up. The environment variable OUTAGE_SECONDS is the least length of an outage,
8 by default.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import JOB_MS, START_MS, api, expect_connection, open_page, start_job, wait_for_bar
from playwright.sync_api import Browser, Page, expect
from webui import MANY_DOCUMENTS, Install, Webui

from semantik_realtime.testing.servers import ROWS, Server

OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "8"))
LIVE_AGAIN_SECONDS = 5.0
"""Far more than needed, for busy machines."""
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
RANKS = ("queued", "running", "completed", "cancelled")

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180 + 3 * OUTAGE_SECONDS)]

# Records everything that any card shows, with the state of the connection at that time.
RECORDER = """
window.seen = [];
window.faults = [];
addEventListener('error', ({message}) => window.faults.push(message));
addEventListener('unhandledrejection', ({reason}) => window.faults.push(String(reason)));
new MutationObserver(() => {
  const connection = document.querySelector('[data-testid=connection]').dataset.state;
  for (const card of document.querySelectorAll('[data-testid=job]')) {
    const bar = card.querySelector('[data-testid=bar]').getAttribute('aria-valuenow');
    const isProvisional = card.hasAttribute('data-provisional');
    const shown = [connection, card.dataset.jobId, card.dataset.status, Number(bar), isProvisional];
    const last = window.seen.findLast(([, job]) => job === shown[1]);
    if (String(last) !== String(shown)) window.seen.push(shown);
  }
}).observe(document, {subtree: true, childList: true, attributes: true});
"""


def open_recorded_page(
    browser: Browser, webui: Webui, connection: str = "live", **options: Any
) -> Page:
    """Open a page that records what it shows; a reload would lose the record."""
    page = open_page(browser, webui, connection, **options)
    page.evaluate(RECORDER)
    return page


def wait_for_moves(page: Page, job: str, times: int) -> None:
    """Wait until the job's bar has moved this many times while the event store was away."""
    page.wait_for_function(
        """([job, times]) => new Set(window.seen
          .filter(([connection, id]) => connection === 'degraded' && id === job)
          .map(([, , , bar]) => bar)).size > times""",
        arg=[job, times],
        timeout=JOB_MS,
    )


def check_record(page: Page, jobs: list[str]) -> None:
    """Check that no job moved back, and that each one completed."""
    assert page.evaluate("window.faults") == []
    shown = defaultdict(list)
    for _, job, status, bar, _ in page.evaluate("window.seen"):
        shown[job].append((RANKS.index(status), bar))
    for job in jobs:
        assert shown[job] == sorted(shown[job]), "a job moved back"
        assert shown[job][-1] == (RANKS.index("completed"), 100)


def start_small_job(webui: Webui, seconds: float) -> str:
    """Start a job that lasts about this long: one document per quarter of a second."""
    paths = [f"report-{number:03}.txt" for number in range(int(seconds * 4))]
    job: str = api(webui, "/api/jobs", {"paths": paths, "pause_seconds": 0.25})["id"]
    return job


def wait_until_running(page: Page, webui: Webui, job: str) -> None:
    """Wait until the database says that a worker runs the job."""
    deadline = time.monotonic() + START_MS / 1000
    while api(webui, f"/api/jobs/{job}")["state"]["status"] != "running":
        assert time.monotonic() < deadline, "no worker runs the job"
        page.wait_for_timeout(50)


@pytest.mark.parametrize("log", ["kept", "lost"])
def test_in_an_outage_the_page_shows_the_databases_record_and_is_live_afterwards(
    log: str,
    server: Server,
    install: Install,
    many_documents: Path,
    chromium: Browser,
    shots: Path | None,
) -> None:
    webui = install(
        server.url,
        many_documents,
        SEMANTIK_REALTIME_RECALL_SECONDS="1",
        DEMO_PAUSE_SECONDS=str((OUTAGE_SECONDS + 6) / MANY_DOCUMENTS),
    )
    page = open_recorded_page(chromium, webui, viewport=DESKTOP)
    job = start_job(page).get_attribute("data-job-id") or ""
    small_job = start_small_job(webui, 4)
    card, small_card = (page.locator(f"[data-job-id='{each}']") for each in (job, small_job))
    wait_for_bar(page, 5, job)
    wait_for_bar(page, 5, small_job)

    server.kill()
    killed_at = time.monotonic()
    if log == "lost":
        server.wipe()
    expect_connection(page, "degraded")
    expect(page.get_by_test_id("away")).to_contain_text("No live updates since")
    expect(card).to_have_attribute("data-provisional", "")
    wait_for_moves(page, job, 2)
    # The job ends during the outage: the page can know this only from the database.
    expect(small_card).to_have_attribute("data-status", "completed", timeout=JOB_MS)
    # A page that is opened during the outage shows the same.
    phone = open_recorded_page(chromium, webui, "degraded", viewport=PHONE, color_scheme="dark")
    wait_for_bar(phone, 1, job)
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    if shots:
        page.screenshot(path=shots / f"6-away-log-{log}.png")
        phone.screenshot(path=shots / f"7-away-log-{log}-phone.png")
    page.wait_for_timeout(max(0, OUTAGE_SECONDS - (time.monotonic() - killed_at)) * 1000)
    done = api(webui, f"/api/jobs/{job}")["state"]["progress"]["current"]

    server.start()
    back_at = time.monotonic()
    expect_connection(page, "live")
    live_after = time.monotonic() - back_at
    expect_connection(phone, "live")
    print(f"live again {live_after:.2f} s after the server answered")
    assert live_after < LIVE_AGAIN_SECONDS
    expect(page.get_by_test_id("away")).to_be_hidden()
    wait_for_bar(page, 100 * done // MANY_DOCUMENTS, job)
    if shots:
        page.screenshot(path=shots / f"8-back-log-{log}.png")

    for each in (page, phone):
        for ended in (job, small_job):
            end = each.locator(f"[data-job-id='{ended}']")
            expect(end).to_have_attribute("data-status", "completed", timeout=JOB_MS)
            expect(end).not_to_have_attribute("data-provisional", "")
        check_record(each, [job, small_job])
    expect(card.locator("[data-type=job_completed]")).to_have_count(1, timeout=START_MS)
    for ended in (job, small_job):
        history = api(webui, f"/realtime/jobs/{ended}/history?limit=1000")["events"]
        assert [event["type"] for event in history].count("job_completed") == 1
    state = api(webui, f"/api/jobs/{job}")["state"]
    assert state["fields"]["processed_files"] == MANY_DOCUMENTS
    assert state["attempt"] == 1
    if shots:
        page.screenshot(path=shots / f"9-done-log-{log}.png", full_page=True)
    for each in (page, phone):
        each.context.close()


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=getattr(pytest.mark, row)) for row in ("valkey", "nats")],
    indirect=True,
)
def test_without_a_server_from_the_start_the_page_works_and_goes_live_when_it_starts(
    row: str,
    server: Server,
    server_url: Callable[[str], str],
    install: Install,
    documents: Path,
    chromium: Browser,
    shots: Path | None,
) -> None:
    backend = ROWS[row].backend
    has_queue = backend != "redis"
    server.kill()
    webui = install(
        server_url("valkey") if has_queue else server.url,
        documents,
        SEMANTIK_REALTIME_BACKEND=backend,
        SEMANTIK_REALTIME_URL=server.url,
        SEMANTIK_REALTIME_RECALL_SECONDS="1",
        DEMO_PAUSE_SECONDS="0",
    )
    page = open_recorded_page(chromium, webui, "degraded", viewport=DESKTOP)
    expect(page.get_by_test_id("away")).to_contain_text("No live updates since")
    unsent = page.get_by_test_id("unsent")
    expect(unsent).to_have_text("")
    page.get_by_test_id("start-all").click()
    card = page.get_by_test_id("job").first
    refusal = page.get_by_text("The job queue does not answer; try again later.")
    if has_queue:
        # The whole job runs during the outage, and only the database has it.
        expect(card).to_have_attribute("data-status", "completed", timeout=JOB_MS)
        expect(card).to_have_attribute("data-provisional", "")
        card = page.locator(f"[data-job-id='{card.get_attribute('data-job-id')}']")
        expect(unsent).to_have_text("")
        # Two jobs keep the worker busy. The third one never runs, so the web server publishes its
        # cancellation: two events, one in the job's topic and one in the feed.
        *busy, queued = (start_small_job(webui, 10) for _ in range(3))
        for job in busy:
            wait_until_running(page, webui, job)
        for job in (queued, *busy):
            api(webui, f"/api/jobs/{job}/cancel", {})
        expect(unsent).to_have_text("2 events not sent yet.", timeout=START_MS)
    else:
        expect(refusal).to_be_visible(timeout=START_MS)
    if shots:
        page.screenshot(path=shots / f"10-no-server-{row}.png")
        page.set_viewport_size(PHONE)
        page.screenshot(path=shots / f"11-no-server-{row}-phone.png")
        page.set_viewport_size(DESKTOP)

    server.start()
    back_at = time.monotonic()
    expect_connection(page, "live")
    live_after = time.monotonic() - back_at
    print(f"live {live_after:.2f} s after the server answered")
    assert live_after < LIVE_AGAIN_SECONDS
    expect(unsent).to_be_hidden()
    if not has_queue:
        page.get_by_test_id("start-all").click()
        expect(refusal).to_be_hidden()
    expect(card).to_have_attribute("data-status", "completed", timeout=JOB_MS)
    expect(card).not_to_have_attribute("data-provisional", "")
    expect(card.locator("[data-type=job_completed]")).to_have_count(1, timeout=START_MS)
    check_record(page, [card.get_attribute("data-job-id") or ""])
    page.context.close()
