"""What the page asks and refuses before it acts."""

from __future__ import annotations

import pytest
from pages import JOB_MS, open_page
from playwright.sync_api import Browser, expect
from webui import Webui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


def test_a_job_and_an_upload_are_deleted_at_the_second_click_only(
    chromium: Browser, webui: Webui
) -> None:
    page = open_page(chromium, webui)
    upload = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"pelicans"}
    page.get_by_test_id("upload").set_input_files([upload])
    page.get_by_test_id("start-selected").click()
    job = page.get_by_test_id("job").first
    expect(job).to_have_attribute("data-status", "completed", timeout=JOB_MS)

    remove = job.get_by_test_id("delete")
    remove.click()
    expect(remove).to_have_text("Really delete this job?")
    page.get_by_test_id("search").focus()
    expect(remove).to_have_text("Delete")
    remove.click()
    expect(job).to_be_visible()
    remove.click()
    expect(page.get_by_test_id("job")).to_have_count(0)

    page.get_by_role("button", name="Delete notes.txt").click()
    page.get_by_role("button", name="Delete?").click()
    expect(page.get_by_role("button", name="Delete notes.txt")).to_have_count(0)


def test_a_file_that_is_no_text_is_refused_with_a_sentence(chromium: Browser, webui: Webui) -> None:
    page = open_page(chromium, webui)
    files = [
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"pelicans"},
        {"name": "report.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7"},
    ]
    page.get_by_test_id("upload").set_input_files(files)
    status = page.locator("#upload-status")
    expect(status).to_contain_text("1 file uploaded and selected")
    expect(status).to_contain_text("report.pdf was refused: PDF files are not read here")
