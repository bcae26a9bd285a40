"""The memory of a test keeps every promise of a backend, with each client as a process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.testing.contract import BackendContract, SinkContract
from semantik_realtime.testing.shared_memory import MemoryClient, SharedMemory

pytestmark = [pytest.mark.memory, pytest.mark.filterwarnings("error")]


class TestSharedMemory(BackendContract, SinkContract):
    # Several clients share it, but several processes do not: see below.
    test_a_forked_child_and_its_parent_can_both_write = None

    @pytest.fixture
    def make_backend(self) -> Callable[..., Any]:
        memories: dict[str, SharedMemory] = {}

        def make(**given: Any) -> MemoryClient:
            settings = load_settings(backend="memory", **given)
            if settings.prefix not in memories:
                memories[settings.prefix] = SharedMemory(load_backend(settings))
            return memories[settings.prefix].client()

        return make


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(load_backend(load_settings(backend="memory")))


def append(client: MemoryClient, topic: str, number: int = 1) -> None:
    [draft] = make_drafts({topic: None}, "note", "", "1", max_bytes=1000)
    draft.producer, draft.number = "p", number
    client.publish([draft])


def test_an_event_is_there_for_the_test_also_after_its_topic_was_deleted(
    memory: SharedMemory,
) -> None:
    append(memory.client(), "job:1")
    memory.client().delete("job:1")
    assert [event["type"] for event in memory.events("job:1")] == ["note"]
    assert memory.topics == ["job:1"]


def test_a_forked_child_gets_an_error_instead_of_losing_events(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = memory.client()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(BackendUnavailable, match="pool solo or threads"):
        append(client, "job:1")
    with pytest.raises(BackendUnavailable, match="another process"):
        client.claim("job:1", "1", "token", None)
    assert memory.topics == []
