"""The wrapper takes part in each hook, around a real server, and changes nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence

import pytest
from semantik_realtime_stamps.plugin import Stamps

from semantik_realtime.backends import loader
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Event, Receipt
from semantik_realtime.errors import AppendUncertain
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import backend_url


class RecordingSink:
    """Keeps the events that it receives."""

    def __init__(self) -> None:
        self.received: list[Event] = []
        self.more = asyncio.Event()

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        self.received += events
        self.more.set()

    def interrupted(self, topic: str) -> None:
        raise AssertionError("the subscription broke")

    def gone(self, topic: str) -> None:
        raise AssertionError("the topic was deleted")


@pytest.fixture
def not_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test gives a plugin of its own, beside which the installed one would stamp too."""
    monkeypatch.setattr(loader, "PLUGINS", "nothing.is.registered.here")


@pytest.fixture(params=["memory", "valkey"])
def settings(request: pytest.FixtureRequest) -> Iterator[Settings]:
    with backend_url(request.param) as url:
        yield Settings(backend="memory" if request.param == "memory" else "redis", url=url)


@pytest.mark.usefixtures("not_by_entry_point")
async def test_every_hook_is_wrapped_and_every_event_is_stamped_once(settings: Settings) -> None:
    stamps = Stamps(max_bytes=65_536)
    runtime = Runtime(settings, plugins=[stamps])
    sink = RecordingSink()
    await runtime.backend.open()
    try:
        await runtime.backend.subscribe("job:1", sink)
        receipt = await runtime.publish("job:1", "note", state={"status": "running"})
        assert receipt.outcome.value == "appended"
        async with asyncio.timeout(5):
            await sink.more.wait()
        snapshot = await runtime.backend.snapshot("job:1", None, 10)
    finally:
        await runtime.backend.close()
        runtime.close()
    [event] = sink.received
    assert json.loads(event.json)["stamp"]["pid"] > 0
    assert event.json.count(b'"stamp"') == 1
    # The stamp is part of the event: of the log, and of the state that is kept.
    assert snapshot.events == [event]
    assert snapshot.states == {"1": event.json}
    assert snapshot.cursor == receipt.cursor
    report = stamps.report()
    assert {name: timing.calls for name, timing in report.items()} == {
        "publish": 1,
        "subscribe": 1,
        "snapshot": 1,
        "lag": 1,
    }
    assert 0 <= report["lag"].longest < 5
    assert 0 < report["publish"].seconds < 5


class LosesTheFirstReceipt(MemoryBackend):
    """A backend that appends, and whose first receipts are lost on the way."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.bodies: list[bytes] = []

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        receipts = super().publish(drafts)
        self.bodies += [draft.body for draft in drafts]
        if len(self.bodies) == 1:
            raise AppendUncertain("the receipts are lost")
        return receipts


@pytest.mark.usefixtures("not_by_entry_point")
async def test_a_retry_sends_the_draft_with_one_stamp() -> None:
    settings = Settings(backend="memory")
    backend = LosesTheFirstReceipt(settings)
    runtime = Runtime(settings, plugins=[Stamps(max_bytes=65_536)], backend=backend)
    try:
        await runtime.publish("job:1", "note", data={"n": 1})
        assert await asyncio.to_thread(runtime.emitter.flush, 5)
    finally:
        runtime.close()
    assert len(backend.bodies) == 2
    assert [body.count(b'"stamp"') for body in backend.bodies] == [1, 1]


@pytest.mark.usefixtures("not_by_entry_point")
async def test_an_event_that_a_stamp_would_make_too_big_is_sent_without() -> None:
    settings = Settings(backend="memory", max_event_bytes=256)
    runtime = Runtime(settings, plugins=[Stamps(max_bytes=256)])
    try:
        receipt = await runtime.publish("job:1", "note", data={"text": "x" * 150})
    finally:
        runtime.close()
    assert receipt.outcome.value == "appended"


def test_the_entry_point_registers_it() -> None:
    runtime = Runtime(Settings(backend="memory"))
    assert runtime.plugins.has_plugin("stamps")
    runtime.close()
