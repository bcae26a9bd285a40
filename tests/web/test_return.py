"""A hub and a runtime over a backend that fails at chosen moments and returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

import pytest
from failing_backend import SETTINGS, FailingBackend
from waiting import until

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.core.event import Receipt
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.runtime import Runtime
from semantik_realtime.web.hub.hub import Hub
from semantik_realtime.web.outage import MAX_RECALLS, DegradedMode

Recall = Callable[[str], Awaitable[dict[str, bytes] | None]]


class NullWatcher:
    """A connection that ignores every notice."""

    allowed: Mapping[str, str | None] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Record:
    """The host's record, which a test replaces."""

    def __init__(self) -> None:
        self.recall: Recall = self._no_record

    async def _no_record(self, topic: str) -> None:
        return None

    async def __call__(self, topic: str) -> dict[str, bytes] | None:
        return await self.recall(topic)


async def flush() -> bool:
    return True


@pytest.fixture
async def backend() -> FailingBackend:
    return FailingBackend()


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture
def guarded(backend: FailingBackend) -> GuardedBackend:
    return GuardedBackend(backend, 5)


@pytest.fixture
def outage(guarded: GuardedBackend, record: Record) -> DegradedMode:
    return DegradedMode(
        guarded,
        flush=flush,
        recall=record,
        tops_seconds=3600,
        recall_seconds=3600,
        max_delayed_bytes=2**20,
    )


@pytest.fixture
async def hub(guarded: GuardedBackend, outage: DegradedMode) -> AsyncIterator[Hub]:
    made = Hub(guarded, outage)
    yield made
    await made.close()


async def test_callers_that_wait_for_the_backend_continue_though_a_call_failed_during_its_return(
    hub: Hub, outage: DegradedMode, backend: FailingBackend
) -> None:
    await hub.follow(NullWatcher(), "job:a", None, 0)
    backend.fail()
    await until(lambda: outage.since)

    backend.gate.clear()
    backend.recover()
    await asyncio.wait_for(outage.wait_for_backend(0), 10)
    # Every topic is being read again when one call of a new client fails.
    backend.fails_once_for = "job:b"
    with pytest.raises(BackendUnavailable):
        await hub.top("job:b")
    waiting = asyncio.create_task(outage.wait_for_backend(0.1))
    backend.gate.set()
    await asyncio.wait_for(waiting, 10)
    await until(lambda: outage.since is None)


async def test_a_hub_that_was_closed_during_an_outage_shows_nothing_of_it_when_opened_again(
    hub: Hub, outage: DegradedMode, backend: FailingBackend, record: Record
) -> None:
    await hub.open()
    backend.fail()
    await until(lambda: outage.since)
    await hub.close()
    backend.recover()
    shown: list[object] = []
    watcher = NullWatcher()
    watcher.allowed = {"job:a": None}
    watcher.provisional = lambda *notice: shown.append(notice)  # type: ignore[attr-defined]
    record.recall = running
    await hub.open()
    hub.register(watcher)
    outage.show("job:a", watcher)
    await until(lambda: not any("show" in task.get_name() for task in asyncio.all_tasks()))
    assert shown == []


async def running(topic: str) -> dict[str, bytes]:
    return {"a": b'{"status":"running"}'}


async def test_the_hosts_record_is_read_for_a_bounded_number_of_topics_at_a_time(
    hub: Hub, outage: DegradedMode, record: Record
) -> None:
    reading: set[str] = set()
    most = 0

    async def recall(topic: str) -> dict[str, bytes]:
        nonlocal most
        reading.add(topic)
        most = max(most, len(reading))
        await asyncio.sleep(0)
        reading.remove(topic)
        return {"a": b"{}"}

    await hub.open()
    record.recall = recall
    records = await asyncio.gather(*(outage.recall(f"job:{number}") for number in range(50)))
    assert records == [{"a": b"{}"}] * 50
    assert most == MAX_RECALLS


async def test_an_event_dropped_for_lack_of_room_raises_and_is_not_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = FailingBackend()
    backend.fail()
    runtime = Runtime(SETTINGS, backend=backend)
    assert (await runtime.publish("job:1", "note", timeout_seconds=0.01)).outcome.value == "waiting"
    dropped: Future[Receipt] = Future()
    dropped.set_exception(BackendUnavailable("dropped: too much waits for the backend"))
    monkeypatch.setattr(runtime.emitter, "emit_and_confirm", lambda draft: dropped)
    with pytest.raises(BackendUnavailable, match="dropped"):
        await runtime.publish("job:1", "note")
    backend.recover()
    runtime.close()
