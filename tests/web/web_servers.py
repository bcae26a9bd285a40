"""Real web servers: on the loop of the test, and in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from configuration import environment, token
from fastapi import FastAPI
from waiting import until

from semantik_realtime import Realtime
from semantik_realtime.config import Settings

FOLDER = Path(__file__).parent
LIMITS = ("--http", "h11", "--ws-max-size", "65536", "--ws-max-queue", "4")
"""As docs/deployment.md has them."""
START_SECONDS = 60
"""A busy machine needs long to import an application."""


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def main_loop(self) -> None:
        # uvicorn's own loop looks ten times a second whether to end, which adds up over all tests.
        await self.on_tick(0)
        await self.stopping.wait()


class WebServer:
    """A running web server, by its address."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.root = ""
        """The path that the application is mounted at."""

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.root}"

    @property
    def native_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{self.root}/realtime/ws"

    def compat_url(self, job: str, path: str = "/ws/jobs/{}") -> str:
        return f"ws://127.0.0.1:{self.port}{self.root}{path.format(job)}"

    def http_client(self, user: object = "7", **options: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token(user)}"}
        return httpx.AsyncClient(base_url=self.http_url, headers=headers, timeout=20, **options)


class InProcessServer(WebServer):
    """An application that uvicorn serves on the loop of the test, which can inspect it."""

    def __init__(self, port: int, app: FastAPI, server: uvicorn.Server) -> None:
        super().__init__(port)
        self.app = app
        self.server = server

    @property
    def rt(self) -> Realtime:
        return self.app.state.realtime


@contextlib.asynccontextmanager
async def serve(app: FastAPI, **options: Any) -> AsyncIterator[InProcessServer]:
    """Serve ``app`` on a free port, on the running loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    options = {"http": "h11", "ws_max_size": 65536, "ws_max_queue": 4, **options}
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, **options)
    server = _Uvicorn(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started or running.done(), 20, "uvicorn starts")
        yield InProcessServer(listener.getsockname()[1], app, server)
    finally:
        server.should_exit = True
        server.stopping.set()
        await running
        listener.close()


@contextlib.asynccontextmanager
async def serve_realtime(settings: Settings, **options: Any) -> AsyncIterator[InProcessServer]:
    """Serve an application that has nothing but `Realtime`, on the running loop."""
    app = FastAPI()
    Realtime(settings, **options).install(app)
    async with serve(app) as made:
        yield made


class ServerProcess(WebServer):
    """A web server in a process of its own; ``variables`` are added to its environment."""

    def __init__(self, settings: Settings, *, app: str = "webhost:app", **variables: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(self._listener.getsockname()[1])
        command = [sys.executable, "-m", "uvicorn", app, "--log-level", "warning", *LIMITS]
        # Without a timeout uvicorn waits for ever for a client that reads nothing.
        command += ["--timeout-graceful-shutdown", "3"]
        self.process = subprocess.Popen(
            [*command, "--app-dir", str(FOLDER), "--fd", str(self._listener.fileno())],
            pass_fds=[self._listener.fileno()],
            env={**os.environ, **environment(settings), **variables},
        )
        self._listener.close()

    async def wait_started(self) -> ServerProcess:
        """Wait until the server answers requests."""
        async with httpx.AsyncClient(base_url=self.http_url, timeout=10) as http:

            async def answers() -> bool:
                assert self.process.poll() is None, "the server has ended"
                try:
                    return (await http.get("/alive")).status_code == 200
                except httpx.TransportError:
                    return False

            deadline = time.monotonic() + START_SECONDS
            while not await answers():
                assert time.monotonic() < deadline, "the server did not start"
                await asyncio.sleep(0.05)
        return self

    def stop(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def wait_ended(self, seconds: float = 10.0) -> int:
        """Return the exit code of the process."""
        await until(lambda: self.process.poll() is not None, seconds, "the server ends")
        return self.process.returncode

    def kill(self) -> None:
        """Send SIGKILL, if the process still runs, and wait for its end."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.asynccontextmanager
async def server_processes(
    count: int, settings: Settings, **variables: str
) -> AsyncIterator[list[ServerProcess]]:
    """Run ``count`` web server processes with the same settings; kill them at the end."""
    servers: list[ServerProcess] = []
    try:
        servers += [ServerProcess(settings, **variables) for _ in range(count)]
        for server in servers:
            await server.wait_started()
        yield servers
    finally:
        for server in servers:
            server.kill()


@contextlib.asynccontextmanager
async def without_delivery(web_server: InProcessServer, topic: str) -> AsyncIterator[None]:
    """Deliver no event of ``topic`` to this server inside the block; the log has them all."""
    await web_server.rt.backend.unsubscribe(topic)
    yield
    await web_server.rt.backend.subscribe(topic, web_server.rt.web.hub)
