"""Topics that the backend does not know: the host is asked for its record of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from semantik_realtime.core.event import Cursor
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.web.hub.subscription import Subscription
from semantik_realtime.web.outage import Recall
from semantik_realtime.web.wires.wire import Sync

RECALL_RETRY_SECONDS = 5.0


class Recalls:
    """Answers the subscriptions of one connection from the host's record, each in a task.

    Args:
        recall: returns the host's record of a topic; raises BackendUnavailable
            if it cannot be asked now.
        spawn: starts a task that ends with the hub.
        answer: sends the answer to a subscription.
    """

    def __init__(
        self,
        recall: Recall,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        answer: Callable[[Sync], object],
    ) -> None:
        self._recall_topic = recall
        self._spawn = spawn
        self._answer = answer
        # By subscription; removed by `cancel`.
        self._running: dict[Subscription, asyncio.Task[None]] = {}

    def start(self, subscription: Subscription, before: Cursor | None) -> None:
        """Ask for the record of a subscription's topic, unless that is under way."""
        running = self._running.get(subscription)
        if running is None or running.done():
            recall = self._recall(subscription, before)
            self._running[subscription] = self._spawn(recall, "answer")

    def cancel(self, subscription: Subscription) -> None:
        """The subscription has ended."""
        recall = self._running.pop(subscription, None)
        if recall is not None:
            recall.cancel()

    async def _recall(self, subscription: Subscription, before: Cursor | None) -> None:
        """Ask outside the writer, which must not wait for the host.

        Until the host has answered the client gets nothing of the topic, unless
        the backend comes to know it and a snapshot replaces the pending one.
        """
        channel = subscription.channel
        while (snapshot := subscription.pending) is not None and snapshot.cursor is None:
            try:
                recalled: Mapping[str, bytes] | None = await self._recall_topic(channel.topic)
            except BackendUnavailable:
                await asyncio.sleep(RECALL_RETRY_SECONDS)
                continue
            if subscription.settle(snapshot):
                self._answer(channel.answer(before, snapshot, recalled))
                subscription.watcher.wake(subscription)
