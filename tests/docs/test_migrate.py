"""The steps of docs/migrate.md work as printed."""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from programs import running_programs, wait_for
from websockets.asyncio.client import connect

from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import free_port
from semantik_realtime.worker.stored_state import read_stored_state

PAGE = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text()
REDIS = "redis://localhost:6379/0"
SECRET = "x" * 32
RECORDER = '''\
class ProgressRecorder:
    """What celery-progress does."""

    def __init__(self, task):
        self.task = task

    def set_progress(self, current, total, description=""):
        meta = {"pending": False, "current": current, "total": total, "percent": 1.0}
        self.task.update_state(state="PROGRESS", meta={**meta, "description": description})
'''


def block(title: str) -> str:
    """Return the example that begins with ``title`` in a comment."""
    found = re.search(rf"^```\w+\n((?:#|//) {re.escape(title)}\n.*?)^```", PAGE, re.M | re.S)
    assert found, title
    return found[1]


def exports() -> dict[str, str]:
    lines = re.findall(r"^export (.*)$", PAGE, re.M)
    pairs = [pair.split("=", 1) for line in lines for pair in line.split()]
    return {name: value.strip("'") for name, value in pairs}


@pytest.fixture
def environment(server_url: Callable[[str], str]) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "REDIS_URL": server_url("valkey"),
        "SEMANTIK_REALTIME_PREFIX": f"t{secrets.token_hex(5)}",
        "PYTHONUNBUFFERED": "1",
    }


def write(folder: Path, environment: dict[str, str], **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text.replace(REDIS, environment["REDIS_URL"]))


def run(folder: Path, environment: dict[str, str], *command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True, timeout=60)


def messages_of(address: str, path: str, until: str) -> list[dict[str, Any]]:
    """Return what a page gets, up to the message of a type."""

    async def read() -> list[dict[str, Any]]:
        got: list[dict[str, Any]] = []
        token = jwt.encode({"sub": "7", "exp": 2**33}, SECRET)
        async with connect(f"ws://{address}{path}?token={token}") as socket:
            async with asyncio.timeout(30):
                while not got or got[-1]["type"] != until:
                    got.append(json.loads(await socket.recv()))
        return got

    return asyncio.run(read())


@pytest.mark.parametrize("app", ["app.py", "app.py, at the end"])
def test_a_founding_application_keeps_its_pages_at_each_step(
    tmp_path: Path, environment: dict[str, str], app: str
) -> None:
    write(tmp_path, environment, tasks=block("tasks.py"), app=block(app))
    environment |= exports() | {"SEMANTIK_REALTIME_JWT_SECRET": SECRET}
    address = f"127.0.0.1:{free_port()}"
    call = "import tasks; tasks.index('op-{}', 7, ['a.pdf', 'b.pdf'])"
    web = ["uvicorn", "app:app", "--port", address.rpartition(":")[2]]
    with running_programs(tmp_path, (environment, web)):
        wait_for(lambda: httpx.get(f"http://{address}/docs").status_code == 200)
        run(tmp_path, environment, "-c", call.format(1))
        [state] = messages_of(address, "/ws/operations/op-1", "current_state")
        assert state["data"] == {
            **state["data"],
            **{"status": "completed", "progress": 100.0, "file": "b.pdf"},
        }
        assert httpx.post(f"http://{address}/operations/op-2/cancel").status_code == 200
        if app != "app.py":
            assert httpx.post(f"http://{address}/operations/op-1/retry").status_code == 200
            run(tmp_path, environment, "-c", call.format(1))
            [state, *_] = messages_of(address, "/ws/operations/op-1", "current_state")
            assert state["data"]["status"] == "completed"
    runtime = Runtime(Settings(url=environment["REDIS_URL"], prefix=environment[PREFIX]))
    assert read_stored_state(runtime, "job:op-2", "op-2")["status"] == "cancelled"
    runtime.close()


PREFIX = "SEMANTIK_REALTIME_PREFIX"


@pytest.mark.parametrize(
    "tasks",
    [
        "tasks.py, before: celery-progress",
        "tasks.py, after celery-progress",
        "tasks.py, after python-socketio",
    ],
)
def test_a_task_reports_its_progress(
    tmp_path: Path, environment: dict[str, str], tasks: str
) -> None:
    (tmp_path / "celery_progress").mkdir()
    (tmp_path / "celery_progress" / "backend.py").write_text(RECORDER)
    write(tmp_path, environment, tasks=block(tasks))
    worker = ["celery", "-A", "tasks", "worker", "--pool", "solo", "--loglevel", "WARNING"]
    queue = f"q{secrets.token_hex(4)}"
    with running_programs(tmp_path, (environment, [*worker, "-Q", queue])):
        send = "queue.send_task('tasks.index', [['a.pdf', 'b.pdf']], task_id='t-1', queue='{}')"
        run(tmp_path, environment, "-c", f"from tasks import queue; {send.format(queue)}")
        runtime = Runtime(Settings(url=environment["REDIS_URL"], prefix=environment[PREFIX]))

        def ended() -> dict[str, Any] | None:
            state = read_stored_state(runtime, "job:t-1", "t-1")
            return state if state.get("status") == "completed" else None

        state = wait_for(ended)
        runtime.close()
    assert (state["progress"]["current"], state["progress"]["total"]) == (2, 2)


@pytest.mark.parametrize("name", ["tasks", "app"])
def test_one_import_changes(name: str) -> None:
    before, after = block(f"{name}.py, before"), block(f"{name}.py")
    [old] = [line for line in before.splitlines() if "import" in line]
    [new] = [line for line in after.splitlines() if "semantik_realtime" in line]
    assert old.split()[-1] == new.split()[-1], difflib.ndiff([old], [new])


def test_every_python_block_of_the_page_can_be_compiled() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) > 10
    for code in blocks:
        compile(code, "migrate.md", "exec")
