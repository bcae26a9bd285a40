"""Workers and web servers on one backend, and how to kill them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery_workers import HERE, Place, Worker

sys.path.append(str(HERE.parent / "web"))

from configuration import make_settings
from web_servers import ServerProcess

LEASE_SECONDS = 3.0


class Fleet:
    """Two web servers; workers are started by each test, with the same prefix."""

    def __init__(self, broker: str, place: Place, lease_seconds: float) -> None:
        self._broker, self._place = broker, place
        self.prefix = f"q{secrets.token_hex(4)}"
        self.lease_seconds = lease_seconds
        self.servers: list[ServerProcess] = []

    def serve(self, count: int, **settings: Any) -> None:
        made = make_settings(
            self._place.url,
            backend=self._place.backend,
            prefix=self.prefix,
            lease_seconds=self.lease_seconds,
            **settings,
        )
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        variables = {"REDIS_URL": self._broker, "PYTHONPATH": path, "TEST_QUEUE": self.prefix}
        for _ in range(count):
            self.servers.append(ServerProcess(made, app="celery_webhost:app", **variables))

    async def wait_started(self) -> None:
        for server in self.servers:
            await server.wait_started()

    @contextlib.contextmanager
    def worker(self, pool: str, directory: Path, **environment: str) -> Iterator[Worker]:
        environment = {
            "SEMANTIK_REALTIME_LEASE_SECONDS": str(self.lease_seconds),
            **environment,
        }
        worker = Worker(self._broker, self._place, pool, directory, self.prefix, **environment)
        try:
            yield worker
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGCONT)
            worker.stop()

    def close(self) -> None:
        for server in self.servers:
            server.kill()


@contextlib.contextmanager
def fleet(
    broker: str, place: Place, servers: int = 2, lease_seconds: float = LEASE_SECONDS, **given: Any
) -> Iterator[Fleet]:
    """Run web servers until the end of the block."""
    made = Fleet(broker, place, lease_seconds)
    try:
        made.serve(servers, **given)
        asyncio.run(made.wait_started())
        yield made
    finally:
        made.close()


def kill_tree(worker: Worker) -> None:
    """Send SIGKILL to a worker's main process and to all processes of its pool, at once."""
    pids = [worker.process.pid, *children_of(worker.process.pid)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    worker.process.wait(10)


def children_of(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started, and what they have."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children_of(int(child))]
    return found
