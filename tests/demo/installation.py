"""Shared by the tests: a login, and the demo with real processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fastapi.testclient import TestClient

from semantik_realtime.testing.servers import free_port

PASSWORD = "correct horse"
LogIn = Callable[[str], TestClient]
DEADLINE_SECONDS = 40


class Demo(NamedTuple):
    """The running demo."""

    client: httpx.Client
    """Logged in."""
    redis_url: str
    token: str

    @property
    def realtime_url(self) -> str:
        """URL of the WebSocket."""
        return str(self.client.base_url.join("/realtime/ws")).replace("http", "ws", 1)

    def state(self, job_id: str) -> dict[str, Any]:
        """Return a job's state from the database."""
        state: dict[str, Any] = self.client.get(f"/api/jobs/{job_id}").json()["state"]
        return state


@contextlib.contextmanager
def running(folder: Path, redis_url: str, workers: int = 1, **environment: str) -> Iterator[Demo]:
    """Start the demo over ``folder / "documents"``, and log in."""
    env = os.environ | {
        "REDIS_URL": redis_url,
        "SEMANTIK_REALTIME_JWT_SECRET": "w" * 40,
        "DEMO_DATA_DIR": str(folder / "data"),
        "DEMO_DOCUMENTS_DIR": str(folder / "documents"),
        "DEMO_USER": "ada",
        "DEMO_PASSWORD": PASSWORD,
        **environment,
    }
    port = free_port()
    worker = "celery", "-A", "semantik_realtime.demo.tasks", "worker", "-c", str(workers)
    web = "uvicorn", "--factory", "semantik_realtime.demo.app:create_app", "--port", str(port)
    web += "--http", "h11", "--ws-max-size", "65536", "--ws-max-queue", "4"
    with (
        process(folder / "worker.log", env, *worker, "-l", "INFO"),
        process(folder / "web.log", env, *web),
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"x-requested-with": "tests"}
        ) as client,
    ):
        login = {"username": "ada", "password": PASSWORD}
        wait_for("login", lambda: client.post("/api/login", json=login).is_success)
        token = client.post("/api/login", json=login).json()["token"]
        yield Demo(client, redis_url, token)


def wait_for(what: str, check: Callable[[], Any]) -> Any:
    """Wait until the check returns a true value, and return it; transport errors are ignored."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if value := check():
                return value
        time.sleep(0.05)
    raise AssertionError(f"not in {DEADLINE_SECONDS} s: {what}")


@contextlib.contextmanager
def process(log: Path, env: dict[str, str], *command: str) -> Iterator[None]:
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *command], env=env, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        running.terminate()
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
