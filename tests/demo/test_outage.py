"""The event store is away: during a task, and from the start.

On the row valkey the event store is Celery's broker too. On the row nats Celery has a Valkey of its
own, which stays up.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Any

import pytest
from installation import DEADLINE_SECONDS, Demo, running, wait_for

from semantik_realtime.client import Update, watch
from semantik_realtime.testing.servers import ROWS, Server

FILES = 150
NAMES = [f"note{number:03}.txt" for number in range(FILES)]

pytestmark = pytest.mark.every_backend

Install = Callable[[], AbstractContextManager[Demo]]


@pytest.fixture
def install(row: str, server: Server, server_url: Callable[[str], str], tmp_path: Path) -> Install:
    """Return a function that starts the demo; the server may be away."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in NAMES:
        (documents / name).write_text(f"{name} is about pelicans.")
    backend = ROWS[row].backend
    environment = {
        "SEMANTIK_REALTIME_BACKEND": backend,
        "SEMANTIK_REALTIME_URL": server.url,
        "SEMANTIK_REALTIME_RECALL_SECONDS": "1",
    }
    broker = server.url if backend == "redis" else server_url("valkey")
    return lambda: running(tmp_path, broker, workers=2, **environment)


@pytest.fixture
def demo(install: Install) -> Iterator[Demo]:
    with install() as installation:
        yield installation


def start(demo: Demo, pause_seconds: float) -> str:
    """Start a job over all documents; return its id when a file is done."""
    job: str = demo.client.post(
        "/api/jobs", json={"all": True, "pause_seconds": pause_seconds}
    ).json()["id"]
    wait_for("progress", lambda: done(demo, job) >= 1)
    return job


def done(demo: Demo, job: str) -> int:
    """Return the number of files that are done, from the database."""
    count: int = demo.state(job)["progress"]["current"]
    return count


def status(demo: Demo, job: str) -> str:
    return str(demo.state(job)["status"])


async def follow(demo: Demo, job: str, updates: list[Update], shown: list[int]) -> None:
    """Watch a job until its end is in the log; record the files shown as done at each update."""
    topic = f"job:{job}"
    async with aclosing(
        watch(demo.realtime_url, topic, token=demo.token, history=1000)
    ) as watching:
        async for update in watching:
            updates.append(update)
            state = update.view.states.get(job, {})
            shown.append(state.get("progress", {}).get("current", 0))
            if any(event["type"] == "job_completed" for event in update.events):
                return


@contextlib.contextmanager
def watching(demo: Demo, job: str) -> Iterator["subprocess.Popen[str]"]:
    """Run ``semantik-realtime watch`` of a job."""
    main = "from semantik_realtime.cli import main; main()"
    command = [sys.executable, "-c", main, "watch", job, "--json"]
    env = {**os.environ, "SEMANTIK_REALTIME_TOKEN": demo.token}
    with subprocess.Popen(
        [*command, "--url", demo.realtime_url],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_tasks_go_on_in_an_outage_and_watchers_get_every_event_afterwards(
    demo: Demo, server: Server
) -> None:
    job = await asyncio.to_thread(start, demo, 0.05)
    other = await asyncio.to_thread(start, demo, 10)
    updates: list[Update] = []
    shown: list[int] = []
    with watching(demo, job) as terminal:
        following = asyncio.create_task(follow(demo, job, updates, shown))
        await until(lambda: updates)

        server.kill()
        at_least = done(demo, job) + 30
        await until(lambda: done(demo, job) >= at_least)
        assert (await asyncio.to_thread(demo.client.post, f"/api/jobs/{other}/cancel")).is_success
        await until(lambda: status(demo, other) == "cancelled")
        # The view shows the database's record and keeps the log's states beside it.
        await until(lambda: shown[-1] >= at_least)
        away = updates[-1]
        assert away.connection == "degraded"
        assert away.since is not None
        assert away.view.folded[job]["progress"]["current"] < at_least

        server.start()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await following
        assert updates[-1].connection == "live"
        assert updates[-1].view.overlay == {}
        assert shown == sorted(shown)
        events = [event for update in updates for event in update.events]
        assert [event["type"] for event in events].count("job_completed") == 1
        check_log(demo, job)

        _, errors = await asyncio.to_thread(terminal.communicate, timeout=DEADLINE_SECONDS)
        assert terminal.returncode == 0, errors
        assert "degraded since " in errors
        assert errors.index("degraded since ") < errors.index("live again")

    # The worker has reconnected to its broker.
    after = await asyncio.to_thread(start, demo, 0)
    await until(lambda: status(demo, after) == "completed")


async def test_without_a_server_from_the_start_every_event_arrives_when_it_starts(
    install: Install, row: str, server: Server
) -> None:
    has_queue = ROWS[row].backend != "redis"
    server.kill()
    with install() as demo:
        assert demo.client.get("/realtime/health").json()["degraded_since"]
        if not has_queue:
            answer = demo.client.post("/api/jobs", json={"all": True})
            assert answer.status_code == 503
            server.start()
        job = await asyncio.to_thread(start, demo, 0)
        updates: list[Update] = []
        shown: list[int] = []
        following = asyncio.create_task(follow(demo, job, updates, shown))
        await until(lambda: status(demo, job) == "completed")
        if has_queue:
            # The job ended before any event could be appended.
            await until(lambda: shown and shown[-1] == FILES)
            assert updates[-1].connection == "degraded"
            assert updates[-1].view.folded == {}
            server.start()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await following
        assert updates[-1].view.folded[job]["status"] == "completed"
        assert updates[-1].view.overlay == {}
        check_log(demo, job)
        await until(lambda: not demo.client.get("/realtime/health").json()["degraded_since"])


def check_log(demo: Demo, job: str) -> None:
    """Check that the log has one start, each file once and in order, and one end."""
    path = f"/realtime/jobs/{job}/history"
    log: list[dict[str, Any]] = []

    def has_ended() -> bool:
        log[:] = demo.client.get(path, params={"limit": 1000}).json()["events"]
        return bool(log) and bool(log[-1].get("terminal"))

    # A watcher may know the end by the host's record, before the worker has sent its events.
    wait_for("the end in the log", has_ended)
    files = [event["data"]["file"] for event in log if event["type"] == "file_completed"]
    assert files == NAMES
    types = [event["type"] for event in log]
    assert types.count("job_started") == types.count("job_completed") == 1
    assert types[-1] == "job_completed"


async def until(condition: object) -> None:
    await asyncio.to_thread(wait_for, "the condition", condition)
