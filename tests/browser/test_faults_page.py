"""The buttons of the demo that break something: a job goes on, and every event arrives once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import JOB_MS, START_MS, expect_connection, load, log_in, start_job, wait_for_bar
from playwright.sync_api import Browser, Locator, Page, expect
from webui import Webui

from semantik_realtime.cli.installation import Installation, installed

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

COUNTS = ("sent", "received", "merged", "missing", "doubled")


@pytest.fixture
def demo(tmp_path: Path, few_documents: Path) -> Iterator[Installation]:
    """The demo's command, but for its terminal."""
    stopping = threading.Event()
    with installed(
        few_documents, tmp_path, port=0, workers=2, pause=2.0, backend="redis"
    ) as installation:

        def supervise() -> None:
            while not stopping.is_set():
                installation.watch(0.1)

        supervisor = threading.Thread(target=supervise)
        supervisor.start()
        try:
            yield installation
        finally:
            stopping.set()
            supervisor.join()


@pytest.fixture
def page(chromium: Browser, demo: Installation) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(START_MS)
    load(page, demo)  # type: ignore[arg-type]
    log_in(page, demo)  # type: ignore[arg-type]
    expect_connection(page, "live")
    yield page
    context.close()


def counts(page: Page) -> dict[str, int]:
    texts = {name: page.get_by_test_id(name).text_content() or "" for name in COUNTS}
    return {name: int(text.replace(",", "")) for name, text in texts.items()}


def expect_each_event_once(page: Page, job: Locator) -> None:
    """Wait for the job's end, and until the page has every event of the log."""
    expect(job).to_have_attribute("data-status", "completed", timeout=JOB_MS)
    page.wait_for_function(
        """() => {
          const text = (name) => document.querySelector(`[data-testid=${name}]`).textContent;
          return Number(text('received')) > 0 && text('sent') === text('received');
        }""",
        timeout=START_MS,
    )
    # Time for the page to ask once more how long the log is.
    page.wait_for_timeout(2500)
    expect(page.get_by_test_id("merged")).to_be_hidden()
    found = counts(page)
    assert found["sent"] == found["received"]
    assert found["merged"] == found["missing"] == found["doubled"] == 0


def press(page: Page, fault: str, answer: str) -> None:
    page.get_by_test_id(fault).click()
    expect(page.get_by_test_id("fault-answer")).to_contain_text(answer)


def test_a_job_goes_on_while_the_web_server_restarts(page: Page) -> None:
    job = start_job(page)
    wait_for_bar(page, 20)
    press(page, "restart-web", "The web server restarts.")
    expect(page.get_by_test_id("fault-answer")).to_have_text("The web server is back.")
    expect_connection(page, "live")
    expect_each_event_once(page, job)


@pytest.mark.parametrize(
    ("fault", "answer", "sentence"),
    [
        ("kill-children", "children were killed", "The process that ran this job was killed."),
        ("kill-worker", "was killed with its children", "The worker that ran this job is gone."),
    ],
)
def test_a_job_whose_process_is_killed_says_so_and_goes_on_with_the_rest(
    page: Page, fault: str, answer: str, sentence: str, shots: Path | None
) -> None:
    job = start_job(page)
    wait_for_bar(page, 20)
    press(page, fault, answer)
    if fault == "kill-worker":
        expect(job.get_by_test_id("left")).to_contain_text("no news for")
        if shots:
            page.screenshot(path=shots / "no-news.png")
    expect(job.get_by_test_id("job-error")).to_contain_text(sentence, timeout=JOB_MS)
    if shots:
        page.screenshot(path=shots / f"{fault}.png")
    job.get_by_test_id("rest").click()
    expect(job).to_have_attribute("data-status", "running", timeout=START_MS)
    expect(job.get_by_test_id("rest")).to_be_hidden()
    expect_each_event_once(page, job)
    expect(job.locator(".counts")).to_contain_text("Attempt")


def test_a_job_goes_on_while_the_broker_is_away(page: Page, shots: Path | None) -> None:
    job = start_job(page)
    wait_for_bar(page, 20)
    press(page, "stop-engine", "The broker (Valkey) was stopped. It is back in 20 s.")
    expect_connection(page, "degraded")
    press(page, "stop-engine", "The broker (Valkey) is away already.")
    # The host's record moves it.
    wait_for_bar(page, int(job.get_by_test_id("bar").get_attribute("aria-valuenow") or 0) + 1)
    expect_connection(page, "degraded")
    if shots:
        page.screenshot(path=shots / "stop-engine.png")
    expect(page.get_by_test_id("connection")).to_have_attribute(
        "data-state", "live", timeout=JOB_MS
    )
    expect(page.get_by_test_id("fault-answer")).to_have_text("The broker is back.")
    expect_each_event_once(page, job)


def test_the_buttons_are_accessible_and_fit_on_a_phone(page: Page, shots: Path | None) -> None:
    accessibility = pytest.importorskip(
        "test_accessibility", reason="axe-core is missing: pip install axe-playwright-python"
    )
    start_job(page)
    press(page, "restart-web", "The web server restarts.")
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        found = accessibility.violations(page, f"{width} px wide")
        assert not found, "\n".join(found)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if shots:
            page.screenshot(path=shots / f"faults-{width}.png")


def test_a_page_that_the_demos_command_did_not_start_has_no_buttons(
    chromium: Browser, webui: Webui
) -> None:
    page = chromium.new_context().new_page()
    load(page, webui)
    log_in(page, webui)
    expect_connection(page, "live")
    expect(page.get_by_test_id("faults")).to_be_hidden()
    page.context.close()
