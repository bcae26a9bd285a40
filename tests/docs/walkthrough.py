"""The files and terminals of docs/quickstart.md and of the README, run as printed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
from programs import running_programs, wait_until_healthy

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
