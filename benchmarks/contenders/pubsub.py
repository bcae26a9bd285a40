"""The usual first attempt: a pub/sub connection to Redis for every socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from fastapi import FastAPI, WebSocket
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from benchmarks.contender import MAX_CONNECTIONS, PEER_BROKER
from benchmarks.contenders.calls import SyncCalls
from benchmarks.contenders.sockets import send_until_disconnect
from benchmarks.traffic import Templates
from benchmarks.wires import BareWire

SUBSCRIBE_SECONDS = 10.0


class PubSubPerSocket:
    """redis-py and FastAPI, without a library between them."""

    name = "pub/sub connection per socket"
    broker = PEER_BROKER
    wire = BareWire()

    def application(self, url: str | None) -> Any:
        app = FastAPI()
        client = Redis.from_url(str(url), decode_responses=True, max_connections=MAX_CONNECTIONS)

        async def send(websocket: WebSocket, pubsub: PubSub) -> None:
            async for message in pubsub.listen():
                await websocket.send_text(message["data"])

        @app.websocket("/watch/{topic}")
        async def watch(websocket: WebSocket, topic: str) -> None:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(topic)
                # The first message confirms the subscription.
                await pubsub.get_message(timeout=SUBSCRIBE_SECONDS)
                await websocket.accept()
                await send_until_disconnect(websocket, send(websocket, pubsub))

        return app

    def publisher(self, url: str, job_ids: Sequence[str]) -> SyncCalls:
        client = redis.Redis.from_url(url)
        templates = Templates(job_ids)
        return SyncCalls(
            lambda number: client.publish(*templates.text(number)),
            client.close,
        )
