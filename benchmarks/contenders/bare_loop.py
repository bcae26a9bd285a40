"""What one writes by hand without a log: one pub/sub connection a process, a dict of sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from redis.asyncio import Redis

from benchmarks.contender import PEER_BROKER
from benchmarks.contenders.calls import SyncCalls
from benchmarks.traffic import Templates
from benchmarks.wires import BareWire


class BareLoop:
    """redis-py and FastAPI. It loses what is published while a socket or the broker is away."""

    name = "bare loop"
    broker = PEER_BROKER
    wire = BareWire()

    def application(self, url: str | None) -> Any:
        pubsub = Redis.from_url(str(url), decode_responses=True).pubsub()
        sockets: dict[str, set[WebSocket]] = {}

        async def deliver() -> None:
            async for message in pubsub.listen():
                if message["type"] == "message":
                    for websocket in list(sockets.get(message["channel"], ())):
                        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                            await websocket.send_text(message["data"])

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            # `listen` ends when nothing is subscribed.
            await pubsub.subscribe("unused")
            delivering = asyncio.create_task(deliver())
            yield
            delivering.cancel()
            await asyncio.wait((delivering,))
            await pubsub.aclose()  # type: ignore[no-untyped-call]

        app = FastAPI(lifespan=lifespan)

        @app.websocket("/watch/{topic}")
        async def watch(websocket: WebSocket, topic: str) -> None:
            watchers = sockets.setdefault(topic, set())
            if not watchers:
                await pubsub.subscribe(topic)
            await websocket.accept()
            watchers.add(websocket)
            try:
                while (await websocket.receive())["type"] != "websocket.disconnect":
                    pass
            finally:
                watchers.discard(websocket)
                if not watchers:
                    sockets.pop(topic, None)
                    await pubsub.unsubscribe(topic)

        return app

    def publisher(self, url: str, job_ids: Sequence[str]) -> SyncCalls:
        client = redis.Redis.from_url(url)
        templates = Templates(job_ids)
        return SyncCalls(lambda number: client.publish(*templates.text(number)), client.close)
