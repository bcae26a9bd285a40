"""The pauses between readings of the host's record, without real waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.web.outage import DegradedMode

GIVEN: dict[str, Any] = {"backend": "memory", "jwt_secret": "a secret of at least thirty-two bytes"}


class FakeConnection:
    """A connection that may see one topic."""

    allowed = {"job:1": None}

    def degraded(self, since: str) -> None:
        pass

    def provisional(self, *shown: object) -> None:
        pass


class FakeHub:
    """A hub with one connection; its prober never looks."""

    connections = (FakeConnection(),)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        if name == "watch":
            work.close()
            work = asyncio.Event().wait()
        return asyncio.ensure_future(work)


async def test_the_record_is_read_every_20_s_plus_or_minus_15_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = 300
    recalled: list[str] = []
    recorded: list[float] = []
    enough = asyncio.Event()
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        recorded.append(seconds)
        if len(recorded) == rounds:
            enough.set()
            await asyncio.Event().wait()
        await sleep(0)

    async def recall(topic: str) -> dict[str, bytes]:
        recalled.append(topic)
        return {"1": b'{"status":"running"}'}

    async def flush() -> bool:
        return True

    monkeypatch.setattr(asyncio, "sleep", record)
    outage = DegradedMode(
        GuardedBackend(MemoryBackend(Settings(**GIVEN)), 1.0),
        recall=recall,
        flush=flush,
        recall_seconds=Settings(**GIVEN).recall_seconds,
        tops_seconds=10.0,
        max_delayed_bytes=2**20,
    )
    outage.start(FakeHub())  # type: ignore[arg-type]
    outage.begin("away")
    async with asyncio.timeout(20):
        await enough.wait()
    outage.stop()
    assert recalled == ["job:1"] * rounds
    assert 17.0 <= min(recorded) < 17.5
    assert 22.5 < max(recorded) <= 23.0
    # Evenly, so that the processes of a fleet spread their queries over the six seconds.
    assert 19.0 < sum(recorded) / rounds < 21.0
