"""The files and commands of docs/quickstart.md and of the README work as printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import wait_for
from walkthrough import QUICKSTART, README, walked


@pytest.fixture
def web(tmp_path: Path, server_url: Callable[[str], str]) -> Iterator[httpx.Client]:
    """A client of the quickstart's web server; its worker runs too."""
    with walked(QUICKSTART, tmp_path, server_url("valkey")) as client:
        yield client


def end_of(web: httpx.Client, job: str) -> dict[str, Any]:
    """Return the state of a job when it has ended."""

    def ended() -> Any:
        answer = web.get(f"/realtime/jobs/{job}")
        state = answer.json()["states"][job] if answer.status_code == 200 else {}
        return state if state.get("status") in ("completed", "failed") else None

    state: dict[str, Any] = wait_for(ended)
    return state


def test_the_progress_is_complete_and_each_file_is_reported_once(web: httpx.Client) -> None:
    job = web.post("/index", json=["a.txt", "b.txt", "c.txt"]).json()["job"]
    state = end_of(web, job)
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


def test_the_example_of_the_readme_runs_as_printed(
    tmp_path: Path, server_url: Callable[[str], str]
) -> None:
    with walked(README, tmp_path, server_url("valkey")) as web:
        call = re.search(r"^curl .*:8000(/\S+) .*-d '(.*)'$", README, re.MULTILINE)
        assert call
        job = web.post(call[1], json=json.loads(call[2])).json()["job"]
        assert end_of(web, job)["status"] == "completed"
        # The address that the page says to open.
        assert re.search(r"`http://localhost:8000/?`", README)
        [module] = re.findall(r'from "(/[^"]+)"', web.get("/").text)
        assert web.get(module).status_code == 200
