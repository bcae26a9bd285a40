"""The demo with real processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from semantik_realtime.cli.program import Program
from semantik_realtime.testing.servers import free_port

DOCUMENTS = 220
FEW_DOCUMENTS = 9
MANY_DOCUMENTS = 500
PASSWORD = "a password for the test"


class Webui:
    """The demo's worker and web server; the web server can be killed and started again."""

    def __init__(
        self, directory: Path, redis_url: str, documents: Path, **environment: str
    ) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.password = PASSWORD
        self._directory = directory
        self._environment = {
            "REDIS_URL": redis_url,
            "SEMANTIK_REALTIME_URL": redis_url,
            "SEMANTIK_REALTIME_JWT_SECRET": "only for tests, " * 3,
            "DEMO_DATA_DIR": str(directory),
            "DEMO_DOCUMENTS_DIR": str(documents),
            "DEMO_PASSWORD": PASSWORD,
            "DEMO_PAUSE_SECONDS": "0.04",
            **environment,
        }
        self.worker = self._program(
            "worker", "celery", "-A", "semantik_realtime.demo.tasks", "worker", "-c", "2"
        )
        self.web = self.start_web()

    def start_web(self) -> Program:
        """Start the web server, always on the same port."""
        self.web = self._program(
            "web",
            *("uvicorn", "--factory", "semantik_realtime.demo.app:create_app"),
            *("--port", str(self.port), "--log-level", "warning"),
            *("--http", "h11", "--ws-max-size", "65536", "--ws-max-queue", "4"),
        )
        return self.web

    def stop(self) -> None:
        self.web.stop()
        self.worker.stop()

    def _program(self, name: str, *arguments: str) -> Program:
        command = [sys.executable, "-m", *arguments]
        return Program(name, command, self._environment, self._directory / f"{name}.log")


Install = Callable[..., Webui]
