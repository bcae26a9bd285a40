"""The example application of docs/add-to-your-application.md, with its worker and database."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from programs import running_programs, wait_until_healthy
from websockets.asyncio.client import connect

from semantik_realtime.core.session import SUBPROTOCOL
from semantik_realtime.testing.servers import (
    RedisServer,
    ServerMissing,
    free_port,
    running,
    valkey_program,
)

FOLDER = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def valkey() -> Iterator[RedisServer]:
    """A server for this test alone, because the test flushes it."""
    try:
        program = valkey_program()
    except ServerMissing as error:
        pytest.skip(str(error))
    with running(RedisServer(program)) as server:
        yield server


@pytest.fixture
def webui(tmp_path: Path, valkey: RedisServer) -> Iterator[str]:
    """The address of the example's web server; its worker runs too."""
    port = free_port()
    environment = os.environ | {
        "REDIS_URL": valkey.url,
        "WEBUI_DATABASE": str(tmp_path / "webui.db"),
        "PYTHONPATH": str(FOLDER),
    }
    commands = (
        ["celery", "-A", "webui:queue", "worker", "--pool", "solo"],
        [
            *("uvicorn", "webui:app", "--port", str(port), "--timeout-graceful-shutdown", "5"),
            *("--http", "h11", "--ws-max-size", "65536"),
        ],
    )
    with running_programs(tmp_path, *((environment, command) for command in commands)):
        wait_until_healthy(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"


async def log_in(client: httpx.AsyncClient, user: str) -> None:
    client.cookies.clear()
    assert (await client.post(f"/login/{user}")).status_code == 200


async def test_the_application_keeps_its_login_its_database_and_its_lifespan(
    webui: str, valkey: RedisServer
) -> None:
    async with httpx.AsyncClient(base_url=f"http://{webui}") as browser:
        await log_in(browser, "ada")
        job = (await browser.post("/index", json=["a.txt", "b.txt"])).json()["job"]
        session = browser.cookies["session"]
        denied, last = await follow(webui, session, job)
        assert denied == "user:bob"
        assert last["progress"] == {"current": 2, "total": 2, "unit": "files"}

        with redis.Redis.from_url(valkey.url) as admin:
            admin.flushall()
        answer = await browser.get(f"/realtime/jobs/{job}")
        assert answer.json()["states"] == {job: {"status": "completed"}}

        await log_in(browser, "bob")
        assert (await browser.get(f"/realtime/jobs/{job}")).status_code == 404
        browser.cookies.clear()
        assert (await browser.get(f"/realtime/jobs/{job}")).status_code == 401


async def follow(webui: str, session: str, job: str) -> tuple[str, dict[str, Any]]:
    """Watch a job until it completes, and another user's feed.

    Returns the topic that was denied, and the last state of the job.
    """
    headers = {"Cookie": f"session={session}"}
    denied, state = "", dict[str, Any]()
    async with connect(
        f"ws://{webui}/realtime/ws", subprotocols=[SUBPROTOCOL], additional_headers=headers
    ) as link:
        topics = {f"job:{job}": None, "user:bob": None}
        await link.send(json.dumps({"op": "subscribe", "topics": topics}))
        while not denied or state.get("status") != "completed":
            frame = json.loads(await link.recv())
            if frame["op"] == "denied":
                denied = frame["topic"]
            elif frame["op"] == "sync":
                state = frame["states"].get(job, state)
            elif frame["op"] == "events":
                for event in frame["topics"][f"job:{job}"]["events"]:
                    state = event.get("state", state)
    return denied, state
