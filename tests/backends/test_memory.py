"""The memory of a process is bounded, also if it only publishes."""

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
    """A clock that the test sets."""

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


def append(backend: MemoryBackend, topic: str, size: int = 0, **more: Any) -> None:
    [receipt] = backend.publish([Author().draft(topic, data={"x": "x" * size}, **more)])
    assert receipt.outcome is Outcome.APPENDED


async def known(backend: MemoryBackend, topics: list[str]) -> list[str]:
    return list(await backend.tops(topics))


async def test_of_too_many_topics_the_one_that_changed_longest_ago_is_dropped(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 4)
    topics = [f"job:{n}" for n in range(6)]
    for topic in topics[:4]:
        append(backend, topic)
    append(backend, topics[0])
    for topic in topics[4:]:
        append(backend, topic)
    assert await known(backend, topics) == ["job:0", "job:3", "job:4", "job:5"]


async def test_of_too_many_bytes_the_topic_that_changed_longest_ago_is_dropped(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOG_BYTES", 10_000)
    topics = [f"job:{n}" for n in range(6)]
    for topic in topics[:4]:
        append(backend, topic, 2000)
    append(backend, topics[0])
    assert await known(backend, topics) == topics[:4]
    append(backend, topics[4], 4000)
    assert await known(backend, topics) == ["job:0", "job:3", "job:4"]
    # It is over the bound alone, but the topic that changed last is never dropped.
    append(backend, topics[5], 20_000)
    assert await known(backend, topics) == ["job:5"]


async def test_a_state_counts_in_addition_to_its_event(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOG_BYTES", 10_000)
    append(backend, "job:1")
    append(backend, "job:2", 4000, state={})
    assert await known(backend, ["job:1", "job:2"]) == ["job:1", "job:2"]
    append(backend, "job:2", 2000)
    assert await known(backend, ["job:1", "job:2"]) == ["job:2"]


async def test_what_is_dropped_does_not_count_any_more(
    backend: MemoryBackend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOG_BYTES", 100_000)
    append(backend, "job:0")
    for n in range(100):
        # Trimmed, superseded, a deleted key, an ended job, a deleted topic, an expired topic.
        append(backend, "job:1", 1000, state={})
        append(backend, "job:1", 1000, state=None)
        append(backend, "user:1", 1000, key=f"j{n}", state={}, job=f"j{n}", terminal=True)
        append(backend, f"job:d{n}", 5000, state={})
        backend.delete(f"job:d{n}")
        clock.seconds += 61
        append(backend, "job:e", 5000, job="e", terminal=True)
    assert await known(backend, ["job:0"]) == ["job:0"]
    logs = backend._logs.values()
    entries = sum(len(event.json) for log in logs for event, _, _ in log.entries)
    assert backend._bytes == entries + sum(
        len(state) for log in logs for state in log.states.values()
    )


async def test_deleted_topics_count_too(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 4)
    for n in range(10):
        backend.delete(f"job:{n}")
    deleted = [(await backend.snapshot(f"job:{n}", None, 0)).deleted for n in range(10)]
    assert deleted == [False] * 6 + [True] * 4


async def test_a_deletion_is_a_change_of_its_topic(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 4)
    for n in range(4):
        append(backend, f"job:{n}")
    backend.delete("job:0")
    append(backend, "job:4")
    assert (await backend.snapshot("job:0", None, 0)).deleted


def test_expired_topics_are_dropped_without_being_read(
    backend: MemoryBackend, clock: Clock
) -> None:
    for n in range(50):
        backend.delete(f"job:{n}")
    clock.seconds += 61
    append(backend, "job:new")
    assert list(backend._logs) == ["job:new"]


async def test_expired_topics_are_dropped_behind_one_that_is_open(
    backend: MemoryBackend, clock: Clock
) -> None:
    append(backend, "job:open", key="open", state={"n": 1})
    ended = [f"job:{n}" for n in range(100)]
    for topic in ended:
        append(backend, topic)
    clock.seconds += 86_400
    append(backend, "job:next")
    assert len(backend._logs) == 2
    assert await known(backend, ["job:open"]) == ["job:open"]
