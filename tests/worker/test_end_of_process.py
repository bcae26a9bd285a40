"""The steps by which a process ends share one time, however many wait for the backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.core.event import Draft, Receipt, encode_body
from semantik_realtime.emitter import registry
from semantik_realtime.emitter.emitter import Emitter

SPARE_SECONDS = 0.7
"""What a busy machine may need more; less than a second wait would take."""


class HangingBackend:
    def __init__(self) -> None:
        self.resumed = threading.Event()

    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        self.resumed.wait(60)
        return []

    def close_writer(self) -> None:
        """Nothing is open."""


@pytest.fixture
def emitter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emitter]:
    """One whose only draft the backend does not acknowledge."""
    backend = HangingBackend()
    emitter = Emitter(GuardedBackend(backend, 5.0))  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "_emitters", [emitter])
    registry._end_at = None
    body = encode_body("note", "2026-01-01T00:00:00.000Z", "1")
    emitter.emit(Draft(topic="job:1", type="note", key="1", body=body))
    yield emitter
    backend.resumed.set()
    registry._end_at = None


def test_the_end_of_an_emitter_takes_no_longer_than_its_time(emitter: Emitter) -> None:
    began = time.monotonic()
    assert not emitter.close(1.0)
    assert time.monotonic() - began < 1.0 + SPARE_SECONDS


def test_an_emitter_that_was_closed_in_vain_is_not_waited_for_again(emitter: Emitter) -> None:
    emitter.close(1.2)
    began = time.monotonic()
    registry._close_all()
    assert time.monotonic() - began < SPARE_SECONDS


def test_the_emitters_have_what_the_steps_before_have_left(emitter: Emitter) -> None:
    began = time.monotonic()
    assert registry.seconds_to_end(1.0) > 0.9
    time.sleep(0.8)
    assert registry.seconds_to_end(30.0) < 0.5
    registry._close_all()
    assert time.monotonic() - began < 1.0 + registry.LEAST_SECONDS + SPARE_SECONDS
