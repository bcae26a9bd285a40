"""What a process that only ever publishes can hold."""

from __future__ import annotations

from typing import Any

import pytest

from semantik_realtime.backends import memory
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.testing.contract import Author

pytestmark = pytest.mark.memory


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend(clock: Clock) -> MemoryBackend:
    settings = load_settings(backend="memory", retention_events=10, max_keys=8, grace_seconds=60)
    return MemoryBackend(settings, clock)


def say(backend: MemoryBackend, topic: str, size: int = 0, **more: Any) -> None:
    [receipt] = backend.publish([Author().draft(topic, data={"x": "x" * size}, **more)])
    assert receipt.outcome is Outcome.APPENDED


async def known(backend: MemoryBackend, topics: list[str]) -> list[str]:
    return list(await backend.tops(topics))


async def test_of_too_many_topics_the_one_that_was_quiet_longest_goes(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 4)
    topics = [f"job:{n}" for n in range(6)]
    for topic in topics[:4]:
        say(backend, topic)
    say(backend, topics[0])
    for topic in topics[4:]:
        say(backend, topic)
    assert await known(backend, topics) == ["job:0", "job:3", "job:4", "job:5"]


async def test_of_too_many_bytes_the_topic_that_was_quiet_longest_goes(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOG_BYTES", 10_000)
    topics = [f"job:{n}" for n in range(6)]
    for topic in topics[:4]:
        say(backend, topic, 2000)
    say(backend, topics[0])
    assert await known(backend, topics) == topics[:4]
    say(backend, topics[4], 4000)
    assert await known(backend, topics) == ["job:0", "job:3", "job:4"]
    # Larger than all that there may be: what was said last is never what goes.
    say(backend, topics[5], 20_000)
    assert await known(backend, topics) == ["job:5"]


async def test_a_state_counts_beside_its_event(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOG_BYTES", 10_000)
    say(backend, "job:1")
    say(backend, "job:2", 4000, state={})
    assert await known(backend, ["job:1", "job:2"]) == ["job:1", "job:2"]
    say(backend, "job:2", 2000)
    assert await known(backend, ["job:1", "job:2"]) == ["job:2"]


async def test_what_is_let_go_is_not_counted_any_more(
    backend: MemoryBackend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOG_BYTES", 100_000)
    say(backend, "job:0")
    for n in range(100):
        # Trimmed, superseded, dropped, ended to make room, deleted, expired.
        say(backend, "job:1", 1000, state={})
        say(backend, "job:1", 1000, state=None)
        say(backend, "user:1", 1000, key=f"j{n}", state={}, job=f"j{n}", terminal=True)
        say(backend, f"job:d{n}", 5000, state={})
        backend.delete(f"job:d{n}")
        clock.seconds += 61
        say(backend, "job:e", 5000, job="e", terminal=True)
    assert await known(backend, ["job:0"]) == ["job:0"]
    logs = backend._logs.values()
    entries = sum(len(event.json) for log in logs for event, _, _ in log.entries)
    assert backend._bytes == entries + sum(
        len(state) for log in logs for state in log.states.values()
    )


async def test_deleted_topics_are_among_those_that_are_counted(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 4)
    for n in range(10):
        backend.delete(f"job:{n}")
    deleted = [(await backend.snapshot(f"job:{n}", None, 0)).deleted for n in range(10)]
    assert deleted == [False] * 6 + [True] * 4


async def test_a_topic_is_not_quiet_when_it_is_deleted(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 4)
    for n in range(4):
        say(backend, f"job:{n}")
    backend.delete("job:0")
    say(backend, "job:4")
    assert (await backend.snapshot("job:0", None, 0)).deleted


def test_what_has_expired_goes_though_nobody_asks_for_it(
    backend: MemoryBackend, clock: Clock
) -> None:
    for n in range(50):
        backend.delete(f"job:{n}")
    clock.seconds += 61
    say(backend, "job:new")
    assert list(backend._logs) == ["job:new"]
