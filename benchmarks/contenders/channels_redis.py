"""Django Channels with channels_redis: consumers in a group that another process sends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

from benchmarks.contender import MAX_CONNECTIONS, PEER_BROKER
from benchmarks.contenders.calls import AsyncCalls
from benchmarks.traffic import Templates
from benchmarks.wires import BareWire


class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Sends the group's messages to its socket."""

    async def connect(self) -> None:
        self.group = group_name(self.scope["url_route"]["kwargs"]["topic"])
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def job_event(self, message: dict[str, str]) -> None:
        await self.send(text_data=message["text"])


class Channels:
    """The default Redis layer, which holds 100 messages per channel by default."""

    name = "channels"
    broker = PEER_BROKER
    wire = BareWire()
    layer = "channels_redis.core.RedisChannelLayer"

    def application(self, url: str | None) -> Any:
        self._configure(url)
        routes = [path("watch/<str:topic>", Consumer.as_asgi())]
        return ProtocolTypeRouter({"websocket": URLRouter(routes)})

    def publisher(self, url: str, job_ids: Sequence[str]) -> AsyncCalls:
        self._configure(url)
        layer = get_channel_layer()
        templates = Templates(job_ids)

        async def publish(number: int) -> None:
            topic, text = templates.text(number)
            await layer.group_send(group_name(topic), {"type": "job.event", "text": text})

        return AsyncCalls(publish)

    def _configure(self, url: str | None) -> None:
        # The layer waits 5 s for a message, and redis-py 8 waits 5 s at most for any answer:
        # unless that timeout is None, a group without messages loses its sockets.
        host = {"address": url, "socket_timeout": None, "max_connections": MAX_CONNECTIONS}
        layer = {"BACKEND": self.layer, "CONFIG": {"hosts": [host]}}
        settings.configure(CHANNEL_LAYERS={"default": layer})
        django.setup()


class ChannelsPubSub(Channels):
    """The other layer: Redis pub/sub."""

    name = "channels, pub/sub layer"
    layer = "channels_redis.pubsub.RedisPubSubChannelLayer"


def group_name(topic: str) -> str:
    """Return the name of a topic's group, which must not contain a colon."""
    return topic.replace(":", ".")
