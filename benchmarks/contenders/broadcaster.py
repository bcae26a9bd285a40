"""broadcaster over Redis: one subscription per process and topic, one queue per socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from broadcaster import Broadcast
from fastapi import FastAPI, WebSocket

from benchmarks.contender import PEER_BROKER
from benchmarks.contenders.calls import AsyncCalls
from benchmarks.contenders.sockets import send_until_disconnect
from benchmarks.traffic import Templates
from benchmarks.wires import BareWire


class Broadcaster:
    """The example of its README, without receiving from clients, and with one more channel.

    In broadcaster 0.3.1 the listener looks for a subscription before redis-py 8 has made it,
    then sleeps until another channel is subscribed, and every event until then is lost. So a
    channel is subscribed before the first client connects.
    """

    name = "broadcaster"
    broker = PEER_BROKER
    wire = BareWire()

    def application(self, url: str | None) -> Any:
        broadcast = Broadcast(url)

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with broadcast, broadcast.subscribe(channel="unused"):
                yield

        app = FastAPI(lifespan=lifespan)

        async def send(websocket: WebSocket, subscriber: Any) -> None:
            async for event in subscriber:
                await websocket.send_text(event.message)

        @app.websocket("/watch/{topic}")
        async def watch(websocket: WebSocket, topic: str) -> None:
            async with broadcast.subscribe(channel=topic) as subscriber:
                await websocket.accept()
                await send_until_disconnect(websocket, send(websocket, subscriber))

        return app

    def publisher(self, url: str, job_ids: Sequence[str]) -> AsyncCalls:
        broadcast = Broadcast(url)
        templates = Templates(job_ids)
        return AsyncCalls(
            lambda number: broadcast.publish(*templates.text(number)),
            start=broadcast.connect,
            close=broadcast.disconnect,
        )
