"""Projects that know nothing of this package, watched through ``semantik-realtime serve``.

They have the layouts of Celery's guides "Next steps" and "First steps with Django".
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import running_programs, wait_for, wait_until_healthy

from semantik_realtime.testing.servers import free_port

PROJECTS = Path(__file__).parents[1] / "projects"
CONSOLE = "from semantik_realtime.cli import main; main()"


class Project:
    """A copy of a project, its worker, and the page that shows its tasks."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.folder = folder / name
        shutil.copytree(PROJECTS / name, self.folder)
        (self.folder / "console.py").write_text(CONSOLE)
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "CELERY_BROKER_URL": url,
            "SEMANTIK_REALTIME_URL": url,
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{free_port()}")

    @contextmanager
    def running(self) -> Iterator[None]:
        worker = ["celery", "-A", "proj", "worker", "--pool", "solo", "--loglevel", "info"]
        page = ["console", "serve", "-A", "proj", "--port", str(self.client.base_url.port)]
        with (
            running_programs(self.folder, (self.environment, worker), (self.environment, page)),
            self.client,
        ):
            wait_until_healthy(f"127.0.0.1:{self.client.base_url.port}")
            # The page sees a task from when the worker sends events.
            wait_for(lambda: "enabled by remote" in (self.folder / "log").read_text())
            yield

    def run(self, *command: str) -> list[str]:
        """Run Python with a command, as a stranger does; return the words of its output."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def shown(self, id: str) -> dict[str, Any]:
        """Return the state that the page shows when the task has ended."""

        def ended() -> Any:
            if id not in {task["id"] for task in self.client.get("/tasks").json()["tasks"]}:
                return None
            answer = self.client.get(f"/realtime/jobs/{id}")
            state = answer.json()["states"][id] if answer.status_code == 200 else {}
            return state if state.get("ended_at") else None

        state: dict[str, Any] = wait_for(ended)
        return state


@pytest.fixture
def start(tmp_path: Path, server_url: Callable[[str], str]) -> Callable[[str], Project]:
    return lambda name: Project(name, tmp_path, server_url("valkey"))


def test_a_project_in_celerys_layout_is_shown_without_an_edit(
    start: Callable[[str], Project],
) -> None:
    project = start("next_steps")
    with project.running():
        [called] = project.run(
            "-m", "celery", "-A", "proj", "call", "proj.tasks.add", "--args=[2, 2]"
        )
        divided, fetched, resized = project.run(
            "-c",
            "from proj.tasks import divide, fetch, resize\n"
            "print(divide.delay(1, 0), fetch.delay('https://example.org'), resize.delay(3))",
        )
        assert project.shown(called)["status"] == "completed"
        assert project.shown(divided)["error"]["type"] == "ZeroDivisionError"
        assert project.shown(fetched)["attempt"] == 2
        state = project.shown(resized)
        assert state["progress"] == {"current": 3, "total": 3}
        assert state["message"] == "Resizing pictures"
        shown = project.client.get("/tasks").json()
        assert shown["title"] == "proj"
        assert shown["tasks"][0] == {"id": resized, "name": "proj.tasks.resize"}
        assert "realtime.js" in project.client.get("/").text


def test_a_project_in_djangos_layout_is_shown_without_an_edit(
    start: Callable[[str], Project],
) -> None:
    pytest.importorskip("django", reason="Django is missing: pip install django")
    project = start("django_site")
    project.run("manage.py", "migrate", "--verbosity", "0")
    with project.running():
        # As a view of the site sends them.
        imported, counted, charged = project.run(
            *("manage.py", "shell", "-c"),
            "from shop.tasks import charge, count_products, import_products\n"
            "tasks = import_products.delay(['soap', 'rope']), count_products.delay()\n"
            "print('sent', *tasks, charge.delay('4111'))",
        )[-3:]
        state = project.shown(imported)
        assert state["status"] == "completed"
        assert state["progress"] == {"current": 2, "total": 2}
        assert state["fields"]["product"] == "rope"
        assert project.shown(counted)["status"] == "completed"
        assert project.shown(charged)["error"]["message"] == "the card 4111 has expired"
