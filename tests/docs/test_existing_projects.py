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

    def call(self, task: str, *arguments: str) -> str:
        """Send a task as a stranger does, and return its id."""
        command = [sys.executable, "-m", "celery", "-A", "proj", "call", task, *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

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
        added = project.call("proj.tasks.add", "--args=[2, 2]")
        divided = project.call("proj.tasks.divide", "--args=[1, 0]")
        fetched = project.call("proj.tasks.fetch", '--args=["https://example.org"]')
        resized = project.call("proj.tasks.resize", "--args=[3]")
        assert project.shown(added)["status"] == "completed"
        assert project.shown(divided)["error"]["type"] == "ZeroDivisionError"
        assert project.shown(fetched)["attempt"] == 2
        state = project.shown(resized)
        assert state["progress"] == {"current": 3, "total": 3}
        assert state["message"] == "Resizing pictures"
        names = [task["name"] for task in project.client.get("/tasks").json()["tasks"]]
        assert names[0] == "proj.tasks.resize"
        assert "realtime.js" in project.client.get("/").text


def test_a_project_in_djangos_layout_is_shown_without_an_edit(
    start: Callable[[str], Project],
) -> None:
    pytest.importorskip("django", reason="Django is missing: pip install django")
    project = start("django_site")
    with project.running():
        imported = project.call("shop.tasks.import_products", '--args=[["soap", "rope"]]')
        state = project.shown(imported)
        assert state["status"] == "completed"
        assert state["progress"] == {"current": 2, "total": 2}
        assert state["fields"]["product"] == "rope"
        # As a view of the site would send it.
        script = "from shop.tasks import count_products as task; print(task.delay().id)"
        done = subprocess.run(
            [sys.executable, "manage.py", "shell", "-c", script],
            cwd=project.folder,
            env=project.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert project.shown(done.stdout.split()[-1])["status"] == "completed"
