"""A browser's EventSource stops by itself when the jobs of its stream have ended."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Response

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

FOLLOW = """() => {
  window.frames_ = [];
  const source = new EventSource("/realtime/jobs/1/events");
  source.onmessage = ({ data }) => window.frames_.push(JSON.parse(data));
  window.source = source;
}"""


def test_an_event_source_reconnects_once_after_the_end_and_closes(
    prefixes_port: int, chromium: Browser
) -> None:
    page = chromium.new_page()
    statuses: list[int] = []

    def note(response: Response) -> None:
        if response.url.endswith("/events"):
            statuses.append(response.status)

    page.on("response", note)
    page.goto(f"http://127.0.0.1:{prefixes_port}/publish/job_completed")
    page.evaluate(FOLLOW)
    # 2: the browser does not try again (EventSource.CLOSED).
    page.wait_for_function("() => window.source.readyState === 2", timeout=30_000)
    assert statuses == [200, 204]
    frames = page.evaluate("() => window.frames_")
    assert [frame["op"] for frame in frames] == ["sync", "bye"]
    assert frames[0]["states"]["1"]["status"] == "completed"
    assert frames[1]["code"] == 1000
    page.close()
