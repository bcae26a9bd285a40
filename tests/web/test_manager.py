"""The replacement for a self-made manager of WebSockets, in the routes of an application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from clients import CompatClient
from configuration import environment
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.migrate.web import WebSocketManager

PATH = "/ws/operations/{}"


def application(manager: WebSocketManager, lifespan: object = None) -> FastAPI:
    app = FastAPI(lifespan=lifespan)  # type: ignore[arg-type]

    @app.websocket("/ws/operations/{operation_id}")
    async def operation(websocket: WebSocket, operation_id: str) -> None:
        await manager.connect(websocket, operation_id, "7")
        try:
            while True:
                if await websocket.receive_text() == "ping":
                    await websocket.send_json({"type": "pong"})
        except WebSocketDisconnect:
            await manager.disconnect(websocket, operation_id, "7")

    return app


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[tuple[InProcessServer, WebSocketManager]]:
    rt = Realtime(settings)
    manager = WebSocketManager(rt)
    app = application(manager)
    rt.install(app)
    async with serve(app) as server:
        yield server, manager


@pytest.mark.every_backend
async def test_a_route_of_the_application_serves_the_wire(
    served: tuple[InProcessServer, WebSocketManager],
) -> None:
    server, manager = served
    await manager.send_update("op-1", "job_started", {"total_files": 2})
    async with CompatClient(server.compat_url("op-1", PATH)) as page:
        assert (await page.wait_for("current_state"))["data"]["total_files"] == 2
        # The route still reads the socket.
        await page.send("ping")
        await page.wait_for("pong")
        await manager.send_update("op-1", "file_completed", {"file": "a.pdf"})
        step = await page.wait_for("file_completed")
        assert step["data"] == {**step["data"], "file": "a.pdf", "total_files": 2}
        await manager.send_update("op-1", "job_completed", {"status": "completed"})
        assert (await page.wait_for("job_completed"))["data"]["total_files"] == 2
        assert server.rt.web.hub.connections
    await until(lambda: not server.rt.web.hub.connections)
    await until(lambda: not manager._serving)
    receipt = await manager.send_message(7, {"type": "note", "data": {"text": "hello"}})
    assert receipt.outcome is Outcome.APPENDED


async def test_a_drain_drops_the_pages_so_that_they_reconnect(
    served: tuple[InProcessServer, WebSocketManager], publisher: Publisher
) -> None:
    server, _ = served
    await publisher.publish("job:op-1", 1)
    async with CompatClient(server.compat_url("op-1", PATH)) as page:
        await page.wait_for("step")
        await server.rt.web.hub.drain()
        assert await page.wait_closed() == 1006


async def test_the_limit_of_connections_holds(settings: Settings, publisher: Publisher) -> None:
    rt = Realtime(settings.model_copy(update={"max_connections": 1}))
    app = application(WebSocketManager(rt))
    rt.install(app)
    await publisher.publish("job:op-1", 1)
    async with serve(app) as server, CompatClient(server.compat_url("op-1", PATH)) as page:
        await page.wait_for("step")
        async with CompatClient(server.compat_url("op-1", PATH)) as second:
            assert await second.wait_closed() == 1006


async def test_without_a_realtime_it_makes_and_closes_its_own(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    manager = WebSocketManager()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await manager.startup()
        yield
        await manager.shutdown()

    await publisher.publish("job:op-1", 1)
    async with (
        serve(application(manager, lifespan)) as server,
        CompatClient(server.compat_url("op-1", PATH)) as page,
    ):
        await page.wait_for("step")
        await asyncio.to_thread(publisher.emit, "job:op-1")
        await page.wait_for("step", 2)
        await manager.shutdown()
        assert await page.wait_closed() == 1006
