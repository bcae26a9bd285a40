"""What carries the events is away: amid a task, and from the start.

The server on the row valkey is also Celery's broker; NATS has beside it one that stays.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from pathlib import Path

import pytest
from installation import DEADLINE_SECONDS, Whole, running, wait_for

from semantik_realtime.client import Update, watch
from semantik_realtime.testing.servers import ROWS, Server

FILES = 150
NAMES = [f"note{number:03}.txt" for number in range(FILES)]

pytestmark = pytest.mark.every_backend

Install = Callable[[], AbstractContextManager[Whole]]


@pytest.fixture
def install(row: str, server: Server, server_url: Callable[[str], str], tmp_path: Path) -> Install:
    """Start the demo over the server, which may be away."""
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in NAMES:
        (documents / name).write_text(f"{name} is about pelicans.")
    backend = ROWS[row].backend
    environment = {
        "SEMANTIK_REALTIME_BACKEND": backend,
        "SEMANTIK_REALTIME_URL": server.url,
        "SEMANTIK_REALTIME_RECALL_SECONDS": "1",
        "SEMANTIK_REALTIME_START_TRIES": "2",
    }
    broker = server.url if backend == "redis" else server_url("valkey")
    return lambda: running(tmp_path, broker, workers=2, **environment)


@pytest.fixture
def whole(install: Install) -> Iterator[Whole]:
    with install() as installation:
        yield installation


def start(whole: Whole, pause_seconds: float) -> str:
    """Start a job over everything; gives its id when the worker has done some files of it."""
    job: str = whole.client.post(
        "/api/jobs", json={"all": True, "pause_seconds": pause_seconds}
    ).json()["id"]
    wait_for("progress", lambda: done(whole, job) >= 1)
    return job


def done(whole: Whole, job: str) -> int:
    """How many files of a job are done, as the database knows it."""
    count: int = whole.state(job)["progress"]["current"]
    return count


def status(whole: Whole, job: str) -> str:
    return str(whole.state(job)["status"])


async def follow(whole: Whole, job: str, updates: list[Update], shown: list[int]) -> None:
    """Watch a job until the log tells its end, and note how much was shown at each update."""
    topic = f"job:{job}"
    async with aclosing(watch(whole.realtime, topic, token=whole.token, history=1000)) as watching:
        async for update in watching:
            updates.append(update)
            state = update.view.states.get(job, {})
            shown.append(state.get("progress", {}).get("current", 0))
            if any(event["type"] == "job_completed" for event in update.events):
                return


@contextlib.contextmanager
def watching(whole: Whole, job: str) -> Iterator["subprocess.Popen[str]"]:
    """``semantik-realtime watch`` of a job."""
    main = "from semantik_realtime.cli import main; main()"
    command = [sys.executable, "-c", main, "watch", job, "--json"]
    env = {**os.environ, "SEMANTIK_REALTIME_TOKEN": whole.token}
    with subprocess.Popen(
        [*command, "--url", whole.realtime],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_tasks_go_on_and_watchers_get_everything_in_the_end(
    whole: Whole, server: Server
) -> None:
    job = await asyncio.to_thread(start, whole, 0.05)
    other = await asyncio.to_thread(start, whole, 10)
    updates: list[Update] = []
    shown: list[int] = []
    with watching(whole, job) as terminal:
        following = asyncio.create_task(follow(whole, job, updates, shown))
        await until(lambda: updates)

        server.kill()
        at_least = done(whole, job) + 30
        await until(lambda: done(whole, job) >= at_least)
        assert (await asyncio.to_thread(whole.client.post, f"/api/jobs/{other}/cancel")).is_success
        await until(lambda: status(whole, other) == "cancelled")
        # What is shown is the database's; what the log has told stays beside it.
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
        told = [event for update in updates for event in update.events]
        assert [event["type"] for event in told].count("job_completed") == 1
        check_log(whole, job)

        _, said = await asyncio.to_thread(terminal.communicate, timeout=DEADLINE_SECONDS)
        assert terminal.returncode == 0, said
        assert "degraded since " in said
        assert said.index("degraded since ") < said.index("live again")

    # The worker has found its broker again.
    after = await asyncio.to_thread(start, whole, 0)
    await until(lambda: status(whole, after) == "completed")


async def test_without_a_server_from_the_start_a_job_is_told_whole_when_it_comes(
    install: Install, row: str, server: Server
) -> None:
    has_queue = ROWS[row].backend != "redis"
    server.kill()
    with install() as whole:
        assert whole.client.get("/realtime/health").json()["degraded_since"]
        if not has_queue:
            answer = whole.client.post("/api/jobs", json={"all": True})
            assert answer.status_code == 503
            server.start()
        job = await asyncio.to_thread(start, whole, 0)
        updates: list[Update] = []
        shown: list[int] = []
        following = asyncio.create_task(follow(whole, job, updates, shown))
        await until(lambda: status(whole, job) == "completed")
        if has_queue:
            # It has ended before anybody could be told.
            await until(lambda: shown and shown[-1] == FILES)
            assert updates[-1].connection == "degraded"
            assert updates[-1].view.folded == {}
            server.start()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await following
        assert updates[-1].view.folded[job]["status"] == "completed"
        assert updates[-1].view.overlay == {}
        check_log(whole, job)
        await until(lambda: not whole.client.get("/realtime/health").json()["degraded_since"])


def check_log(whole: Whole, job: str) -> None:
    """Each file once and in order, between one start and one end."""
    path = f"/realtime/jobs/{job}/history"
    log = whole.client.get(path, params={"limit": 1000}).json()["events"]
    files = [event["data"]["file"] for event in log if event["type"] == "file_completed"]
    assert files == NAMES
    types = [event["type"] for event in log]
    assert types.count("job_started") == types.count("job_completed") == 1
    assert types[-1] == "job_completed"


async def until(condition: object) -> None:
    await asyncio.to_thread(wait_for, "the condition", condition)
