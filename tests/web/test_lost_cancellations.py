"""Every shell ends although its tasks lose a cancellation, whatever they wait for at the time."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import pytest
from configuration import make_settings
from losing_tasks import LosingTasks
from publisher import Publisher
from waiting import until

from semantik_realtime import Realtime, cancellation
from semantik_realtime.config import Settings
from semantik_realtime.testing.servers import ROWS
from semantik_realtime.web.endpoints.transport import run
from semantik_realtime.web.hub.connection import Connection
from semantik_realtime.web.tokens import CheckedIdentity
from semantik_realtime.web.wires.native import NativeWire

STRIDE = 4
"""Every so many awaits are tried in one run of this test; they are others in each run."""
END_SECONDS = 10.0
"""What ends at all ends within a second."""
TOPICS = ["job:1", "job:2"]


@pytest.fixture
def settings(row: str, server_url: Callable[[str], str]) -> Settings:
    return make_settings(
        server_url(row), backend=ROWS[row].backend, disable_auth=True, environment="development"
    )


async def serve_one_connection(settings: Settings, frames: list[str]) -> None:
    """Open all of a web server, with one connection that watches two topics, until cancelled."""
    web = Realtime(settings).web

    async def send(frame: str) -> None:
        frames.append(frame)

    async def read(_: Connection) -> None:
        await asyncio.Event().wait()

    async with web.lifespan(None):
        identity = CheckedIdentity("7", None)
        connection = Connection(
            NativeWire(), web.hub, web.outage, web.permissions, identity, send, heartbeat_seconds=1
        )
        for topic in TOPICS:
            connection.subscribe(topic, None, 10)
        await run(web, connection, read, "one")


async def has_synced(frames: list[str]) -> None:
    await until(lambda: sum('"sync"' in one for one in frames) == len(TOPICS), 30)


# A connection that is cancelled while it is made, and loses that, leaves its socket unclosed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.every_backend(shares_storage=True)
def test_a_web_server_ends_although_each_task_loses_its_first_cancellation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "REPEAT_SECONDS", 0.02)
    asyncio.run(cancel_at_each_await(settings))
    # Here, and not in a later test, the sockets that were left are closed.
    gc.collect()


async def cancel_at_each_await(settings: Settings) -> None:
    publisher = Publisher(settings)
    await publisher.publish("job:1", 3)
    loop = asyncio.get_running_loop()
    at, is_over, lost = 1 + time.time_ns() % STRIDE, False, 0
    while not is_over:
        tasks = LosingTasks(at)
        frames: list[str] = []
        loop.set_task_factory(tasks)
        serving = loop.create_task(serve_one_connection(settings, frames), name="serving")
        reached = loop.create_task(tasks.reached.wait(), name="reached")
        synced = loop.create_task(has_synced(frames), name="synced")
        await asyncio.wait((reached, synced, serving), return_when=asyncio.FIRST_COMPLETED)
        assert not serving.done() or serving.exception() is None
        is_over = synced.done()
        reached.cancel()
        synced.cancel()
        serving.cancel()
        ended, _ = await asyncio.wait((serving,), timeout=END_SECONDS)
        assert ended, f"cancelled at await {at}: it goes on"
        left = [task for task in tasks.tasks if not task.done()]
        if left:
            await asyncio.wait(left, timeout=END_SECONDS)
        assert [task for task in left if not task.done()] == []
        at += STRIDE
        lost += tasks.lost
    assert at > 5 * STRIDE
    assert lost > at / STRIDE
    loop.set_task_factory(None)
    publisher.close()
