"""python-socketio: an ASGI server with a Redis manager, to which another process emits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import socketio

from benchmarks.contender import PEER_BROKER
from benchmarks.contenders.calls import SyncCalls
from benchmarks.traffic import Templates
from benchmarks.wires import SocketIoWire


class SocketIo:
    """A room per topic, and a write-only manager in the publisher, as for a Celery task."""

    name = "python-socketio"
    broker = PEER_BROKER
    wire = SocketIoWire()

    def application(self, url: str | None) -> Any:
        manager = socketio.AsyncRedisManager(url)
        server = socketio.AsyncServer(async_mode="asgi", client_manager=manager)

        async def watch(sid: str, topic: str) -> str:
            await server.enter_room(sid, topic)
            return "watching"

        server.on("watch", watch)
        return socketio.ASGIApp(server)

    def publisher(self, url: str, job_ids: Sequence[str]) -> SyncCalls:
        manager = socketio.RedisManager(url, write_only=True)
        templates = Templates(job_ids)

        def publish(number: int) -> None:
            room, event = templates.event(number)
            manager.emit("event", event, room=room)

        return SyncCalls(publish, lambda: manager.redis.close())
