"""A job that was submitted may be watched at once, also when its worker has no time to say so.

``TEST_WATCHED_JOBS=1000`` submits as many jobs in each case.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from celery_workers import Place, Worker, running

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))

from clients import NativeClient
from configuration import SECRET
from web_servers import WebServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.tracker import TaskTracker

JOBS = int(os.environ.get("TEST_WATCHED_JOBS", "30"))
AT_ONCE = 50
"""Jobs of one connection."""
BACKLOG = 1000
CASES = [
    ("prefork", "hold_interpreter"),
    ("threads", "hold_interpreter"),
    ("solo", "hold_interpreter"),
    ("gevent", "compute"),
    ("eventlet", "compute"),
    ("prefork", "add"),
]


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.mark.timeout(60 + 2 * JOBS)
@pytest.mark.parametrize(("pool", "body"), CASES)
async def test_a_submitted_job_may_be_watched_though_its_worker_is_busy(
    broker: str, place: Place, tmp_path: Path, pool: str, body: str
) -> None:
    """Bodies that let nothing else of their process run for a second, or a long backlog."""
    tracker = TaskTracker()
    args = (1, 2) if body == "add" else (1,)
    with running(broker, place, pool, tmp_path) as worker:
        settings = Settings(**{**worker.settings.model_dump(), "jwt_secret": SECRET})
        runtime = Runtime(settings)
        tracker.use(runtime)

        def send() -> str:
            return f"job:{worker.send(body, *args)}"

        def submit() -> str:
            """As `semantik_realtime.worker.submit.submit` does, with this test's tracker."""
            topic = send()
            assert tracker.flush()
            return topic

        try:
            async with serve_realtime(settings) as server:
                # To an idle worker: the body begins at once. Of the first job only the worker says
                # whose it is.
                await watch(server, send, 1)
                tracker.connect()
                await watch(server, submit, 1)
                if body == "add":
                    await asyncio.to_thread(make_backlog, worker)
                for begin in range(0, JOBS, AT_ONCE):
                    await watch(server, submit, min(AT_ONCE, JOBS - begin))
        finally:
            tracker.disconnect()
            runtime.close()
            # Most of the jobs still wait.
            worker.process.kill()


def make_backlog(worker: Worker) -> None:
    for _ in range(BACKLOG):
        worker.send("hold_interpreter", 1)


async def watch(server: WebServer, send: Callable[[], str], count: int) -> None:
    """Send jobs, subscribe each one as soon as its id is known, and wait for the answers."""
    async with NativeClient(server) as client:
        await client.wait_for("welcome")
        for _ in range(count):
            await client.subscribe(await asyncio.to_thread(send))
        await client.wait_synced(*client.views)
        assert len(client.views) == count
        assert not client.ops("denied")
