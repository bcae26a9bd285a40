"""The installed demo: Valkey, a worker and a web server; and Debian's Chromium."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from webui import DOCUMENTS, FEW_DOCUMENTS, MANY_DOCUMENTS, Install, Webui

from semantik_realtime.testing.servers import free_port

# The pages' examples are run as their own tests run them.
sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # For a page of another origin than the server's, which is not of this machine by its name.
    "--host-resolver-rules=MAP elsewhere.example 127.0.0.1",
]
EXPECT_MS = 20_000
WORDS = [
    "retrieval",
    "chunk",
    "vector",
    "search",
    "document",
    "worker",
    "queue",
    "snapshot",
    "cursor",
    "offset",
    "browser",
    "progress",
    "reconnect",
    "outage",
    "lease",
    "replay",
]


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files, the same in every run."""
    return write_documents(tmp_path_factory.mktemp("documents"), DOCUMENTS)


@pytest.fixture(scope="session")
def few_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of them, for a job of a few seconds."""
    return write_documents(tmp_path_factory.mktemp("few"), FEW_DOCUMENTS)


@pytest.fixture(scope="session")
def many_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many of them, for a job that lasts longer than an outage."""
    return write_documents(tmp_path_factory.mktemp("many"), MANY_DOCUMENTS)


def write_documents(folder: Path, count: int) -> Path:
    chance = random.Random(7)
    for number in range(count):
        paragraphs = [" ".join(chance.choices(WORDS, k=60)) for _ in range(6)]
        (folder / f"report-{number:03}.txt").write_text("\n\n".join(paragraphs))
    return folder


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Start the demo: ``install(redis_url, documents, **environment)``."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: Any, **environment: str) -> Webui:
            installation = Webui(tmp_path, *arguments, **environment)
            stack.callback(installation.stop)
            return installation

        yield start


@pytest.fixture
def webui(install: Install, server_url: Callable[[str], str], documents: Path) -> Webui:
    return install(server_url("valkey"), documents)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A headless browser."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        pytest.skip("playwright is missing: pip install playwright")
    # A busy machine may take longer than the default of five seconds.
    expect.set_options(timeout=EXPECT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def shots() -> Path | None:
    """The folder for screenshots: that of the environment variable SCREENSHOTS, if it is set."""
    folder = os.environ.get("SCREENSHOTS")
    if folder is None:
        return None
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def prefixes_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with the application of prefixes_host.py."""
    # Of the folder tests/docs, see above.
    from programs import running_programs, wait_until_healthy

    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parent),
        "ENVIRONMENT": "development",
        "DISABLE_AUTH": "1",
        "SEMANTIK_REALTIME_BACKEND": "memory",
    }
    command = ["uvicorn", "prefixes_host:app", "--port", str(port)]
    with running_programs(tmp_path_factory.mktemp("host"), (environment, command)):
        wait_until_healthy(f"127.0.0.1:{port}")
        yield port
