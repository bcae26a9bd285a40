"""Connections get their ticks in parts, between which events get a turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from web_servers import InProcessServer

from semantik_realtime.web.hub import hub as hub_module


class Ticked:
    """Stands for a connection; counts the turns that the loop has had before its first tick."""

    turns = 0

    def __init__(self) -> None:
        self.ticked_at: int | None = None

    def tick(self, now: float) -> None:
        if self.ticked_at is None:
            self.ticked_at = Ticked.turns

    def drain(self) -> None:
        pass


async def test_every_connection_gets_a_tick_and_the_loop_a_turn_between_the_parts(
    web_server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "TICKS_AT_ONCE", 2)
    hub = web_server.rt.web.hub
    watchers: list[Any] = [Ticked() for _ in range(7)]
    for watcher in watchers:
        hub.register(watcher)

    async def count_turns() -> None:
        while True:
            Ticked.turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    async with asyncio.timeout(30):
        while any(watcher.ticked_at is None for watcher in watchers):
            await asyncio.sleep(0.05)
    counting.cancel()
    for watcher in watchers:
        hub.unregister(watcher)
    assert len({watcher.ticked_at for watcher in watchers}) >= 3
