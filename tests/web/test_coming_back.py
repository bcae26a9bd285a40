"""A backend that comes and goes at inconvenient moments, chosen by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from fleet import until

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Receipt
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Snapshot, Top, hookimpl
from semantik_realtime.runtime import Runtime
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.outage import MAX_RECALLS, DegradedMode

SETTINGS = Settings(backend="memory", url=None)


class Fickle(MemoryBackend):
    """Fails when it is told to."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        super().__init__(settings)
        self.is_away = False
        self.fails_once_for = ""
        self.gate = asyncio.Event()
        self.gate.set()

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        self._fail_if_away()
        return super().publish(drafts)

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        self._fail_if_away()
        if self.fails_once_for in topics:
            self.fails_once_for = ""
            raise BackendUnavailable("it failed once")
        return await super().tops(topics)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        self._fail_if_away()
        await self.gate.wait()
        return await super().snapshot(topic, after, history)

    def _fail_if_away(self) -> None:
        if self.is_away:
            raise BackendUnavailable("it is away")


class Silent:
    """A watcher that listens to nothing."""

    allowed: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.fixture
async def backend() -> Fickle:
    return Fickle()


@pytest.fixture
async def hub(backend: Fickle) -> AsyncIterator[Hub]:
    async def flush() -> bool:
        return True

    async def recall(topic: str) -> None:
        return None

    guarded = GuardedBackend(backend, 5)
    outage = DegradedMode(
        guarded,
        flush=flush,
        recall=recall,
        tops_seconds=3600,
        recall_seconds=3600,
        max_delayed_bytes=2**20,
    )
    made = Hub(guarded, outage)
    yield made
    await made.close()


async def test_who_waits_for_the_backend_is_let_go_though_a_call_failed_while_it_came_back(
    hub: Hub, backend: Fickle
) -> None:
    await hub.follow(Silent(), "job:a", None, 0)
    backend.is_away = True
    await until(lambda: hub._degraded_mode.since)

    backend.gate.clear()
    backend.is_away = False
    await until(hub._degraded_mode._answers.is_set)
    # Every topic is being read again. Now somebody comes, and just his call fails.
    backend.fails_once_for = "job:b"
    with pytest.raises(BackendUnavailable):
        await hub.top("job:b")
    waiting = asyncio.create_task(hub._degraded_mode.wait_for_backend(0.1))
    backend.gate.set()
    await asyncio.wait_for(waiting, 10)
    await until(lambda: hub._degraded_mode.since is None)


async def test_a_hub_that_was_closed_during_an_outage_shows_nothing_of_it_afterwards(
    hub: Hub, backend: Fickle
) -> None:
    await hub.open()
    backend.is_away = True
    await until(lambda: hub._degraded_mode.since)
    await hub.close()
    backend.is_away = False
    shown: list[object] = []
    watcher = Silent()
    watcher.allowed = ("job:a",)
    watcher.provisional = lambda *told: shown.append(told)  # type: ignore[attr-defined]
    hub._degraded_mode._recall_host = lambda topic: _states()  # type: ignore[assignment]
    await hub.open()
    hub.register(watcher)
    hub._degraded_mode.show("job:a", watcher)
    await until(lambda: not any("show" in task.get_name() for task in hub._tasks))
    assert shown == []


async def _states() -> dict[str, bytes]:
    return {"a": b'{"status":"running"}'}


async def test_the_hosts_record_is_asked_for_a_few_topics_at_a_time(hub: Hub) -> None:
    asking: set[str] = set()
    most = 0

    async def recall(topic: str) -> dict[str, bytes]:
        nonlocal most
        asking.add(topic)
        most = max(most, len(asking))
        await asyncio.sleep(0)
        asking.remove(topic)
        return {"a": b"{}"}

    await hub.open()
    hub._degraded_mode._recall_host = recall  # type: ignore[assignment]
    told = await asyncio.gather(
        *(hub._degraded_mode.recall(f"job:{number}") for number in range(50))
    )
    assert told == [{"a": b"{}"}] * 50
    assert most == MAX_RECALLS


async def test_an_event_that_finds_no_room_is_refused_not_called_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = Fickle()
    backend.is_away = True
    runtime = Runtime(SETTINGS, backend=backend)
    assert (await runtime.publish("job:1", "note", timeout_seconds=0.01)).outcome.value == "waiting"
    dropped: Future[Receipt] = Future()
    dropped.set_exception(BackendUnavailable("dropped: too much waits for the backend"))
    monkeypatch.setattr(runtime.emitter, "emit_and_confirm", lambda draft: dropped)
    with pytest.raises(BackendUnavailable, match="dropped"):
        await runtime.publish("job:1", "note")
    backend.is_away = False
    runtime.close()
