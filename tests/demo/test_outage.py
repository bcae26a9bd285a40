"""The broker is away while a task runs: it is also Celery's, and what carries the events."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from installation import DEADLINE_SECONDS, Whole, running, wait_for

from semantik_realtime.client import Update, watch
from semantik_realtime.testing.servers import Server

FILES = 150


@pytest.fixture
def whole(server: Server, tmp_path: Path) -> Iterator[Whole]:
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(FILES):
        (documents / f"note{number:03}.txt").write_text(f"Note {number} about pelicans.")
    with running(
        tmp_path, server.url, workers=2, SEMANTIK_REALTIME_RECALL_SECONDS="1"
    ) as installation:
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
    """Watch a job to its end, and note how much was shown at each update."""
    topic = f"job:{job}"
    async with aclosing(watch(whole.realtime, topic, token=whole.token, history=1000)) as watching:
        async for update in watching:
            updates.append(update)
            state = update.view.states.get(job, {})
            shown.append(state.get("progress", {}).get("current", 0))
            if update.view.folded.get(job, {}).get("status") == "completed":
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
        path = f"/realtime/jobs/{job}/history"
        log = whole.client.get(path, params={"limit": 1000}).json()["events"]
        files = [event["data"]["file"] for event in log if event["type"] == "file_completed"]
        assert files == [f"note{number:03}.txt" for number in range(FILES)]

        _, said = await asyncio.to_thread(terminal.communicate, timeout=DEADLINE_SECONDS)
        assert terminal.returncode == 0, said
        assert "degraded since " in said
        assert said.index("degraded since ") < said.index("live again")

    # The worker has found its broker again.
    after = await asyncio.to_thread(start, whole, 0)
    await until(lambda: status(whole, after) == "completed")


async def until(condition: object) -> None:
    await asyncio.to_thread(wait_for, "the condition", condition)
