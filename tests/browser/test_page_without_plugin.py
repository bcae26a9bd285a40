"""The page in a real browser without the realtime plugin: it polls the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pages import JOB_MS, open_page, start_job, wait_for_bar
from playwright.sync_api import Browser, expect
from webui import FEW_DOCUMENTS, Install

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

PHONE = {"width": 360, "height": 740}


def test_without_the_plugin_a_job_completes_by_polling_and_the_badge_is_not_live(
    install: Install,
    server_url: Callable[[str], str],
    few_documents: Path,
    chromium: Browser,
    shots: Path | None,
) -> None:
    url = server_url("valkey")
    webui = install(url, few_documents, DEMO_PLUGINS="false", DEMO_PAUSE_SECONDS="0.4")
    page = open_page(chromium, webui, "polling", viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    expect(page.get_by_test_id("connection")).to_have_text("not live")

    job = start_job(page)
    wait_for_bar(page, 10)
    expect(job).to_have_attribute("data-status", "running")
    expect(job).to_contain_text("Live events need the realtime plugin.")
    # There are no events to show more of.
    expect(job.get_by_label("every step")).to_be_hidden()
    if shots:
        page.screenshot(path=shots / "11-polling.png")
    expect(job).to_have_attribute("data-status", "completed", timeout=JOB_MS)
    expect(job.get_by_test_id("amount")).to_have_text(f"{FEW_DOCUMENTS} files")
    indexed = f"{FEW_DOCUMENTS} of {FEW_DOCUMENTS} files indexed"
    expect(page.get_by_text(indexed)).to_be_visible()

    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    brand = "(({scrollWidth, clientWidth}) => scrollWidth <= clientWidth)"
    assert page.evaluate(f"{brand}(document.querySelector('.brand'))"), "the brand is cut off"
    if shots:
        page.screenshot(path=shots / "12-polled-phone.png")
    assert (faults, sockets) == ([], [])
    page.context.close()
