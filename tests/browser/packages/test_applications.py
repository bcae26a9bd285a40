"""Applications that Vite builds, in StrictMode too, in a browser and against a server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from npm_application import HERE, Application
from playwright.sync_api import Browser, WebSocket, expect

sys.path.insert(0, str(HERE.parents[1] / "docs"))

from programs import running_programs, wait_until_healthy

from semantik_realtime.testing.servers import free_port

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server(application: Application, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The origin of a server with the built pages."""
    application.run("node", "build.js")
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(HERE),
        "BUILT": str(application.folder / "built"),
        "ENVIRONMENT": "development",
        "DISABLE_AUTH": "1",
        "SEMANTIK_REALTIME_BACKEND": "memory",
    }
    command = ["uvicorn", "built_host:app", "--port", str(port)]
    folder: Path = tmp_path_factory.mktemp("host")
    with running_programs(folder, (environment, command)):
        wait_until_healthy(f"127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("built", ["react18", "react19", "vue"])
def test_a_built_page_follows_jobs_over_one_subscription(
    server: str, chromium: Browser, built: str
) -> None:
    def publish(current: int, status: str = "running") -> None:
        url = f"{server}/publish/1/{current}"
        assert httpx.post(url, params={"status": status}).is_success

    page = chromium.new_page()
    problems: list[str] = []
    frames: list[str] = []

    def note(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: frames.append(str(frame)))

    page.on("websocket", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    publish(1)
    page.goto(f"{server}/built/{built}/index.html")
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#current")).to_have_text("1")
    expect(page.locator("#status")).to_have_text("running false")
    painted = page.evaluate("paints.status")
    for current in (2, 3, 4):
        publish(current)
        expect(page.locator("#current")).to_have_text(str(current))
    # The component that shows the status was not painted for the progress; each event came once.
    assert page.evaluate("paints.status") == painted
    assert page.evaluate("events") == ["job_progress"] * 3

    page.click("#start")
    expect(page.locator("#started")).to_have_text("2 running null")
    expect(page.locator("#ids")).to_have_text("1,2")
    page.click("#fail")
    expect(page.locator("#started")).to_have_text("null null HTTP 404")

    subscribed = [frame for frame in frames if '"subscribe"' in frame]
    assert sum('"job:1"' in frame for frame in subscribed) == 1
    assert not any('"unsubscribe"' in frame and '"job:1"' in frame for frame in frames)
    assert problems == []
    page.close()
