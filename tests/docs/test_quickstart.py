"""The files and commands of docs/quickstart.md and of the README work as printed."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import running_programs, wait_for, wait_until_healthy

from semantik_realtime.testing.servers import free_port

ROOT = Path(__file__).parents[2]
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
README = (ROOT / "README.md").read_text().partition("## Use it")[2].partition("\n## ")[0]
REDIS = "redis://localhost:6379/0"


def example(page: str, name: str) -> str:
    """Return the example that begins with ``name`` in a comment."""
    found = re.search(rf"^```\w+\n((?:# |<!-- ){re.escape(name)}.*?)^```", page, re.M | re.S)
    assert found, name
    return found[1]


def terminal(page: str, program: str) -> tuple[dict[str, str], list[str]]:
    """Return what one terminal of the page has: its exports, and the command of ``program``."""
    [block] = [
        block
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)
        if not language and re.search(rf"^{program} ", block, re.M)
    ]
    exports: dict[str, str] = {}
    for line in block.splitlines():
        if line.startswith("export "):
            exports |= dict(pair.split("=") for pair in line.split()[1:])
        else:
            command = line.split()
    return exports, command


@contextlib.contextmanager
def walked(page: str, folder: Path, url: str) -> Iterator[httpx.Client]:
    """Write the page's files, and run its two terminals with what it exports in each alone."""
    for name in ("app.py", "page.html"):
        (folder / name).write_text(example(page, name).replace(REDIS, url))
    # Beside the path of programs only the address of the test's server, which is not 6379.
    outside = {"PATH": os.environ["PATH"], "REDIS_URL": url, "PYTHONUNBUFFERED": "1"}
    port = free_port()
    worker, web = terminal(page, "celery"), terminal(page, "uvicorn")
    with running_programs(
        folder,
        (outside | worker[0], worker[1]),
        (outside | web[0], [*web[1], "--port", str(port)]),
    ):
        wait_until_healthy(f"127.0.0.1:{port}")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield client


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
