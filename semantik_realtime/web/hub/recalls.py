"""Asking the host for its record of the topics that the backend does not know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from semantik_realtime.cancellation import cancel_until_done
from semantik_realtime.core.event import Cursor
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.web.hub.subscription import Subscription
from semantik_realtime.web.wires.wire import Sync

RECALL_RETRY_SECONDS = 5.0


class Recalls:
    """The tasks of one connection that ask for the host's record.

    Outside the connection's writer, which must not wait for the host.

    Args:
        recall: returns the host's record of a topic; raises BackendUnavailable
            if it cannot be asked now.
        spawn: starts a task that ends with the hub.
        answer: sends the answer to a subscription.
    """

    def __init__(
        self,
        recall: Callable[[str], Awaitable[Mapping[str, bytes] | None]],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        answer: Callable[[Subscription, Sync], None],
    ) -> None:
        self._recall = recall
        self._spawn = spawn
        self._answer = answer
        self._running: dict[Subscription, asyncio.Task[None]] = {}

    def start(self, subscription: Subscription, before: Cursor | None) -> None:
        """Answer ``subscription``, whose position was ``before``, with the host's record.

        Until the host has answered the client gets nothing of the topic, unless
        the backend comes to know it and a snapshot replaces the pending one.
        """
        running = self._running.get(subscription)
        if running is None or running.done():
            recalling = self._recall_until_known(subscription, before)
            self._running[subscription] = self._spawn(recalling, "answer")

    def forget(self, subscription: Subscription) -> None:
        """The connection has left ``subscription``."""
        running = self._running.pop(subscription, None)
        if running is not None:
            cancel_until_done(running)

    async def _recall_until_known(self, subscription: Subscription, before: Cursor | None) -> None:
        channel = subscription.channel
        while (snapshot := subscription.pending) is not None and snapshot.cursor is None:
            try:
                recalled = await self._recall(channel.topic)
            except BackendUnavailable:
                await asyncio.sleep(RECALL_RETRY_SECONDS)
                continue
            if subscription.settle(snapshot):
                self._answer(subscription, channel.answer(before, snapshot, recalled))
