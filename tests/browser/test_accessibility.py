"""The page in each of its states, checked by axe-core in both colour schemes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import api, expect_connection, load, log_in, start_job
from playwright.sync_api import Browser, Page, expect
from webui import Install

from semantik_realtime.testing.servers import Server

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="axe-core is missing: pip install axe-playwright-python",
)


@pytest.mark.browser
@pytest.mark.timeout(240)
@pytest.mark.parametrize("row", ["valkey"], indirect=True)
def test_axe_finds_nothing_in_any_state_and_colour_scheme(
    chromium: Browser, install: Install, server: Server, few_documents: Path
) -> None:
    webui = install(server.url, few_documents, DEMO_PAUSE_SECONDS="2")
    # A text that fades in has less contrast than the text that can be read.
    context = chromium.new_context(reduced_motion="reduce")
    page = context.new_page()
    found: list[str] = []

    load(page, webui)
    expect(page.get_by_test_id("login")).to_be_visible()
    found += violations(page, "login")

    log_in(page, webui)
    expect_connection(page, "live")
    expect(page.locator("#jobs-empty")).to_be_visible()
    found += violations(page, "empty")

    job = start_job(page)
    if job.locator(".job-head").get_attribute("aria-expanded") == "false":
        job.locator(".job-head").click()
    expect(job.get_by_test_id("events").locator("li").first).to_be_visible()
    found += violations(page, "running")

    page.get_by_test_id("search").fill("cursor")
    expect(page.get_by_test_id("search-results").locator("li").first).to_be_visible()
    found += violations(page, "search")
    page.get_by_test_id("search").fill("")

    server.kill()
    expect_connection(page, "degraded")
    expect(page.get_by_test_id("away")).to_be_visible()
    found += violations(page, "outage")
    server.start()
    assert api(webui, "/api/jobs")["jobs"]
    assert not found, "\n".join(found)


def violations(page: Page, state: str) -> list[str]:
    """Return what axe-core finds, a line for each element."""
    lines = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        results: dict[str, Any] = axe.Axe().run(page).response
        assert results["passes"]
        lines += [
            f"{state}, {scheme}: {violation['id']}: {node['target']}: {node['failureSummary']}"
            for violation in results["violations"]
            for node in violation["nodes"]
        ]
    return lines
