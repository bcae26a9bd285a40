"""Take the picture of docs/celery.md: a Django project, its worker, and the page of its tasks.

Run it in the root of a clone, with the groups ``browser``, ``docs`` and ``test``
installed, the extra ``demo``, and Chromium::

    python docs/screenshot.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

from semantik_realtime.testing.servers import backend_url, free_port

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "tasks.png"
CONSOLE = "from semantik_realtime.cli import main; main()"
SIZE = {"width": 960, "height": 400}
START_SECONDS = 60
TASKS = [
    ("count_products", "[]"),
    ("send_receipt", '["ada@example.org"]'),
    ("charge", '["4111"]'),
    ("import_products", '[["soap", "rope", "lamp", "kettle", "chair", "bowl", "vase", "rug"], 4]'),
]


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as name, backend_url("valkey") as url:
        folder = Path(name) / "site"
        shutil.copytree(ROOT / "tests" / "projects" / "django_site", folder)
        environment = {**os.environ, "CELERY_BROKER_URL": url, "SEMANTIK_REALTIME_URL": url}
        migrate = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
        subprocess.run(migrate, cwd=folder, env=environment, check=True)
        port = free_port()

        def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment)

        celery = ("-m", "celery", "-A", "proj")
        programs = [
            start([*celery, "worker", "--pool", "threads", "--loglevel", "warning"]),
            start(["-c", CONSOLE, "serve", "-A", "proj", "--port", str(port)]),
        ]
        try:
            take(f"http://localhost:{port}", folder, environment)
        finally:
            # A task still runs, and nobody needs its end.
            for program in programs:
                program.kill()
                program.wait()


def take(address: str, folder: Path, environment: dict[str, str]) -> None:
    """Send the tasks, and take the picture when the last one is half done."""
    wait_for(address)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(address)
        send = [sys.executable, "-m", "celery", "-A", "proj", "call"]
        for number, (task, arguments) in enumerate(TASKS, 1):
            # Until the worker sends events the page does not see a task.
            while page.locator("li").count() < number:
                subprocess.run(
                    [*send, f"shop.tasks.{task}", f"--args={arguments}"],
                    cwd=folder,
                    env=environment,
                    check=True,
                )
                page.wait_for_timeout(2500)
        page.get_by_text("of 8", exact=False).first.wait_for()
        page.wait_for_timeout(6000)
        page.screenshot(path=str(PICTURE))
        browser.close()


def wait_for(address: str) -> None:
    """Return when the page is served."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{address}/tasks").close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


if __name__ == "__main__":
    main()
