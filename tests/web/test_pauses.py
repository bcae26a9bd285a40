"""The pauses between tries to open and between readings of the record, without real waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from fastapi import FastAPI

from semantik_realtime import Realtime
from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.web.outage import DegradedMode

GIVEN: dict[str, Any] = {"backend": "memory", "jwt_secret": "a secret of at least thirty-two bytes"}


class UnreachableBackend(MemoryBackend):
    """A backend that cannot be opened; it counts the tries."""

    def __init__(self) -> None:
        super().__init__(Settings(**GIVEN))
        self.tries = 0

    @hookimpl
    async def open(self) -> None:
        self.tries += 1
        raise BackendUnavailable("connection refused")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the test's own task, which are recorded and skipped. The hub's tasks sleep."""
    recorded: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float, *rest: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        if task.get_name().startswith("semantik-realtime-"):
            return await sleep(seconds, *rest)
        recorded.append(seconds)
        return await sleep(0, *rest)

    monkeypatch.setattr(asyncio, "sleep", record)
    return recorded


@pytest.fixture
def backend() -> UnreachableBackend:
    return UnreachableBackend()


Make = Callable[..., Realtime]


@pytest.fixture
async def make(backend: UnreachableBackend) -> AsyncIterator[Make]:
    """Make a web application's `Realtime` over the backend that cannot be opened."""
    made: list[Realtime] = []

    def start(**given: Any) -> Realtime:
        made.append(Realtime(Settings(**{**GIVEN, **given}), backend=backend))
        return made[-1]

    yield start
    for rt in made:
        await rt.web.hub.close()
        rt.close()


@pytest.mark.parametrize(
    ("jitter", "expected"), [(0.0, [1.0, 2.0, 4.0]), (1.0, [1.5, 2.5, 4.5])], ids=["least", "most"]
)
async def test_the_hub_opens_in_four_tries_with_pauses_of_1_2_and_4_s_and_up_to_half_a_second_more(
    make: Make,
    backend: UnreachableBackend,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    jitter: float,
    expected: list[float],
) -> None:
    monkeypatch.setattr(random, "random", lambda: jitter)
    with pytest.raises(BackendUnavailable):
        await make().web.hub.open_at_start(4)
    assert backend.tries == 4
    assert pauses == pytest.approx(expected)


async def test_servers_that_start_together_retry_at_different_times(
    make: Make, pauses: list[float]
) -> None:
    for _ in range(20):
        with pytest.raises(BackendUnavailable):
            await make().web.hub.open_at_start(2)
    assert len(set(pauses)) == 20
    assert min(pauses) >= 1.0
    assert max(pauses) <= 1.5


@pytest.mark.parametrize(("tries", "waits"), [("1", 0), ("2", 1), ("", 3)])
async def test_a_web_server_starts_without_a_backend_after_start_tries_tries(
    make: Make,
    backend: UnreachableBackend,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    tries: str,
    waits: int,
) -> None:
    if tries:
        monkeypatch.setenv("SEMANTIK_REALTIME_START_TRIES", tries)
    rt = make()
    app = FastAPI()
    async with rt.web.lifespan(app):
        assert backend.tries == waits + 1
        assert len(pauses) == waits
        assert rt.web.outage.since is not None


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
        GuardedBackend(UnreachableBackend(), 1.0),
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
