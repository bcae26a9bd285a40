"""What is shown while the backend is away: the host's record, and what waits in this process."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any

import msgspec

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.core.fold import is_ahead
from semantik_realtime.errors import BackendError
from semantik_realtime.web.hub.channel import Watcher, states_of

_decode = msgspec.json.Decoder().decode

Recall = Callable[[str], Awaitable[Mapping[str, bytes] | None]]
States = Mapping[str, bytes]


class DegradedMode:
    """Provisional states for the watchers, from `begin` to `end`.

    Each watched topic is looked up in the host's record at once and then
    every ``recall_seconds``, once however many watch it; what this process
    publishes is shown as soon as it has to wait.
    """

    def __init__(
        self,
        backend: GuardedBackend,
        recall: Recall,
        recall_seconds: float,
        watchers: Collection[Watcher],
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
    ) -> None:
        self._backend = backend
        self._recall = recall
        self._recall_seconds = recall_seconds
        self._watchers = watchers
        self._spawn = spawn
        self._epoch = ""
        """Of this outage; empty while there is none."""
        self._polling: asyncio.Task[Any] | None = None

    def begin(self) -> None:
        """The backend is away: show everyone what there is, and keep it fresh."""
        self._epoch = f"m:{secrets.token_hex(5)}"
        self._polling = self._spawn(self._poll(), "recall")

    def end(self) -> None:
        """The backend has everything again. Nothing provisional is shown after this."""
        self._epoch = ""
        self._backend.forget_shelter()
        if self._polling is not None:
            self._polling.cancel()

    def show(self, topic: str, watcher: Watcher) -> None:
        """Show ``watcher``, who has just come, what there is of ``topic``."""
        if self._epoch:
            self._spawn(self._show(topic, [watcher]), "show")

    def show_sheltered(self, topics: Collection[str]) -> None:
        """What this process published on ``topics`` has to wait: show it."""
        for topic in topics:
            self._spawn(self._show_sheltered(topic, self._watchers), "show")

    async def states(self, topic: str) -> dict[str, bytes] | None:
        """What is known of ``topic`` without the backend; None: nothing."""
        sheltered = states_of(await self._backend.shelter_of(topic))
        recalled = await self._recall(topic)
        if recalled is None and not sheltered:
            return None
        states = dict(recalled or {})
        for key, state in sheltered.items():
            if key not in states or not is_ahead(_decode(states[key]), _decode(state)):
                states[key] = state
        return states

    async def _poll(self) -> None:
        while True:
            topics = {topic for watcher in list(self._watchers) for topic in watcher.shown}
            await asyncio.gather(*(self._show(topic, self._watchers) for topic in topics))
            await asyncio.sleep(self._recall_seconds * random.uniform(0.85, 1.15))  # noqa: S311

    async def _show(self, topic: str, watchers: Collection[Watcher]) -> None:
        epoch = self._epoch
        try:
            recalled = await self._recall(topic)
        except BackendError:
            recalled = None
        if recalled and epoch == self._epoch:
            self._tell(topic, "recall", recalled, watchers)
        await self._show_sheltered(topic, watchers)

    async def _show_sheltered(self, topic: str, watchers: Collection[Watcher]) -> None:
        states = states_of(await self._backend.shelter_of(topic))
        if states and self._epoch:
            self._tell(topic, "memory", states, watchers)

    def _tell(self, topic: str, source: str, states: States, watchers: Collection[Watcher]) -> None:
        for watcher in list(watchers):
            if topic in watcher.shown:
                watcher.provisional(topic, self._epoch, source, states)
