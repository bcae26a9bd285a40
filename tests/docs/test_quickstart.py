"""The files and commands of docs/quickstart.md work as described."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import running_programs, wait_for, wait_until_healthy

from semantik_realtime.testing.servers import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()


def example(name: str) -> str:
    """Return the example that begins with ``name`` in a comment."""
    found = re.search(rf"^```\w+\n((?:# |<!-- ){re.escape(name)}.*?)^```", PAGE, re.M | re.S)
    assert found, name
    return found[1]


@pytest.fixture
def web(tmp_path: Path, server_url: Callable[[str], str]) -> Iterator[httpx.Client]:
    """A client of the quickstart's web server; its worker runs too."""
    url = server_url("valkey")
    application = example("app.py")
    assert "redis://localhost:6379/0" in application
    (tmp_path / "app.py").write_text(application.replace("redis://localhost:6379/0", url))
    (tmp_path / "page.html").write_text(example("page.html"))
    exports = re.search(r"^export (.*)$", PAGE, re.MULTILINE)
    assert exports
    environment = os.environ | {"REDIS_URL": url, "PYTHONUNBUFFERED": "1"}
    environment |= dict(pair.split("=") for pair in exports[1].split())
    port = free_port()
    assert "\ncelery -A app:queue worker\n" in PAGE
    assert "\nuvicorn app:app\n" in PAGE
    commands = (
        ["celery", "-A", "app:queue", "worker"],
        ["uvicorn", "app:app", "--port", str(port)],
    )
    with running_programs(tmp_path, environment, *commands):
        wait_until_healthy(f"127.0.0.1:{port}")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield client


def test_the_progress_is_complete_and_each_file_is_reported_once(web: httpx.Client) -> None:
    job = web.post("/index", json=["a.txt", "b.txt", "c.txt"]).json()["job"]

    def ended() -> Any:
        answer = web.get(f"/realtime/jobs/{job}")
        state = answer.json()["states"][job] if answer.status_code == 200 else {}
        return state if state.get("status") in ("completed", "failed") else None

    state = wait_for(ended)
    assert state["status"] == "completed"
    assert state["progress"] == {"current": 3, "total": 3, "unit": "files"}
    events = web.get(f"/realtime/jobs/{job}/history").json()["events"]
    files = [event["data"]["file"] for event in events if event["type"] == "file_completed"]
    assert files == ["a.txt", "b.txt", "c.txt"]


def test_the_page_and_its_javascript_client_are_served(web: httpx.Client) -> None:
    [module] = re.findall(r'from "(/[^"]+)"', web.get("/").text)
    answer = web.get(module)
    assert answer.status_code == 200
    assert "export function connect" in answer.text
