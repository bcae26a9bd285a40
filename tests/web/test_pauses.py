"""How long is waited between two tries and two looks, told without waiting."""

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


class Away(MemoryBackend):
    """A backend whose server is not there; it counts who looks for it."""

    def __init__(self) -> None:
        super().__init__(Settings(**GIVEN))
        self.tries = 0

    @hookimpl
    async def open(self) -> None:
        self.tries += 1
        raise BackendUnavailable("nobody listens")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the test itself sleeps: asked for, noted, and over at once. The hub's tasks sleep."""
    noted: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float, *rest: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        if task.get_name().startswith("semantik-realtime-"):
            return await sleep(seconds, *rest)
        noted.append(seconds)
        return await sleep(0, *rest)

    monkeypatch.setattr(asyncio, "sleep", note)
    return noted


@pytest.fixture
def backend() -> Away:
    return Away()


Make = Callable[..., Realtime]


@pytest.fixture
async def make(backend: Away) -> AsyncIterator[Make]:
    """A web application's realtime over the backend that is away."""
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
async def test_the_first_connection_is_tried_four_times_after_1_2_and_4_s_and_up_to_half_a_second(
    make: Make,
    backend: Away,
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


async def test_two_servers_that_start_together_do_not_try_together(
    make: Make, pauses: list[float]
) -> None:
    for _ in range(20):
        with pytest.raises(BackendUnavailable):
            await make().web.hub.open_at_start(2)
    assert len(set(pauses)) == 20
    assert min(pauses) >= 1.0
    assert max(pauses) <= 1.5


@pytest.mark.parametrize(("tries", "waits"), [("1", 0), ("2", 1), ("", 3)])
async def test_start_tries_says_how_often_a_web_server_tries_before_it_goes_on_without(
    make: Make,
    backend: Away,
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


class Watching:
    """A connection that watches one topic."""

    allowed = ("job:1",)

    def degraded(self, since: str) -> None:
        pass

    def provisional(self, *shown: object) -> None:
        pass


class OneConnection:
    """A hub with one connection, whose tasks run until the test ends."""

    connections = (Watching(),)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        if name == "watch":
            work.close()
            work = asyncio.Event().wait()
        return asyncio.ensure_future(work)


async def test_between_two_looks_at_the_record_are_20_s_15_percent_more_or_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = 300
    asked: list[str] = []
    noted: list[float] = []
    enough = asyncio.Event()
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        noted.append(seconds)
        if len(noted) == rounds:
            enough.set()
            await asyncio.Event().wait()
        await sleep(0)

    async def recall(topic: str) -> dict[str, bytes]:
        asked.append(topic)
        return {"1": b'{"status":"running"}'}

    async def flush() -> bool:
        return True

    monkeypatch.setattr(asyncio, "sleep", note)
    outage = DegradedMode(
        GuardedBackend(Away(), 1.0),
        recall=recall,
        flush=flush,
        recall_seconds=Settings(**GIVEN).recall_seconds,
        tops_seconds=10.0,
        max_delayed_bytes=2**20,
    )
    outage.start(OneConnection())  # type: ignore[arg-type]
    outage.begin("away")
    async with asyncio.timeout(20):
        await enough.wait()
    outage.stop()
    assert asked == ["job:1"] * rounds
    assert 17.0 <= min(noted) < 17.5
    assert 22.5 < max(noted) <= 23.0
    # Evenly: what all processes of a fleet ask for is spread over the six seconds.
    assert 19.0 < sum(noted) / rounds < 21.0
