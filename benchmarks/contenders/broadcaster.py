"""broadcaster over Redis: one subscription a process and topic, one queue a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from broadcaster import Broadcast
from fastapi import FastAPI, WebSocket

from benchmarks.contender import PEER_BROKER
from benchmarks.contenders.calls import AsyncCalls
from benchmarks.contenders.sockets import send_until_gone
from benchmarks.traffic import Template
from benchmarks.wires import BareWire


class Broadcaster:
    """As in its README, without the half that receives, and with one more subscription.

    broadcaster 0.3.1 lets its listener look for a subscription before redis-py 8
    has made it; then the listener sleeps until a further channel is subscribed,
    and everything is lost. So one is subscribed beforehand.
    """

    name = "broadcaster"
    broker = PEER_BROKER
    wire = BareWire()

    def application(self, url: str | None) -> Any:
        broadcast = Broadcast(url)

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with broadcast, broadcast.subscribe(channel="beforehand"):
                yield

        app = FastAPI(lifespan=lifespan)

        async def send(websocket: WebSocket, subscriber: Any) -> None:
            async for event in subscriber:
                await websocket.send_text(event.message)

        @app.websocket("/watch/{topic}")
        async def watch(websocket: WebSocket, topic: str) -> None:
            async with broadcast.subscribe(channel=topic) as subscriber:
                await websocket.accept()
                await send_until_gone(websocket, send(websocket, subscriber))

        return app

    def publisher(self, url: str, job_id: str) -> AsyncCalls:
        broadcast = Broadcast(url)
        template, topic = Template(job_id), f"job:{job_id}"
        return AsyncCalls(
            lambda number: broadcast.publish(topic, template.text(number)),
            start=broadcast.connect,
            close=broadcast.disconnect,
        )
