"""SIGTERM ends a web server within 3 s, whatever the backend and the clients do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator

import pytest
from clients import NativeClient
from configuration import make_settings
from publisher import Publisher
from waiting import until
from web_servers import ServerProcess
from websockets.asyncio.client import connect

from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS, Server

PROMISE_SECONDS = 3.0
SPARE_SECONDS = 4.0
"""What a busy machine may need more."""
WATCHED = int(os.environ.get("WATCHED", "2000"))
"""Jobs; set it to try more."""
TOPICS_AT_ONCE = 100

pytestmark = pytest.mark.every_backend(shares_storage=True)


@pytest.fixture
def own_settings(server: Server, row: str) -> Settings:
    """Settings for a server of this test's own, which lets everybody see everything."""
    return make_settings(
        server.url,
        backend=ROWS[row].backend,
        disable_auth=True,
        environment="development",
        max_connections=100,
    )


@contextlib.asynccontextmanager
async def web_process(settings: Settings, **variables: str) -> AsyncIterator[ServerProcess]:
    web = ServerProcess(settings, **variables)
    try:
        yield web
    finally:
        web.kill()


async def stops(web: ServerProcess, *, signals: int = 1) -> float:
    """Send SIGTERM, and return after how many seconds the process has ended."""
    began = time.monotonic()
    for _ in range(signals):
        web.stop()
        await asyncio.sleep(0.1 if signals > 1 else 0)
    await web.wait_ended(30)
    seconds = time.monotonic() - began
    print(f"stopped after {seconds:.2f} s, load {os.getloadavg()[0]:.1f}")
    assert seconds < PROMISE_SECONDS + SPARE_SECONDS
    return seconds


async def test_a_server_whose_backend_hangs_stops(server: Server, own_settings: Settings) -> None:
    publisher = Publisher(own_settings)
    async with web_process(own_settings) as web:
        await web.wait_started()
        await publisher.publish("job:1", 1)
        async with NativeClient(web, "job:1") as client:
            await client.wait_synced()
            server.pause()
            try:
                # Reads, writes and a resync are under way, and all of them hang.
                await asyncio.sleep(1.5)
                await stops(web)
            finally:
                server.resume()
    publisher.close()


async def test_a_server_stops_while_it_starts_without_a_backend(
    server: Server, own_settings: Settings
) -> None:
    server.pause()
    try:
        async with web_process(own_settings) as web:
            await web.wait_started()
            await stops(web)
    finally:
        server.resume()


async def test_a_server_with_thousands_of_watched_jobs_stops(
    server: Server, own_settings: Settings
) -> None:
    # On one backend with a second signal, after which uvicorn ends nothing in order.
    signals = 2 if own_settings.backend == "nats" else 1
    async with web_process(own_settings) as web, contextlib.AsyncExitStack() as stack:
        await web.wait_started()
        synced: set[str] = set()
        tasks = []
        for first in range(0, WATCHED, TOPICS_AT_ONCE):
            names = [f"job:{number}" for number in range(first, first + TOPICS_AT_ONCE)]
            socket = await stack.enter_async_context(
                connect(web.native_url, subprotocols=["semantik.realtime.v1"], max_size=None)
            )
            await socket.send('{"op":"auth","token":null}')
            await socket.send(json.dumps({"op": "subscribe", "topics": dict.fromkeys(names)}))

            async def read(socket: object = socket) -> None:
                with contextlib.suppress(Exception):
                    async for text in socket:  # type: ignore[attr-defined]
                        frame = json.loads(text)
                        if frame["op"] == "sync":
                            synced.add(frame["topic"])

            tasks.append(asyncio.create_task(read()))
        await until(lambda: len(synced) == WATCHED, 60, lambda: len(synced))
        await stops(web, signals=signals)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
