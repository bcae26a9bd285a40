"""The server's clock decides what is over, whatever happens to the clock of a host."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import pytest
from semantik_realtime.core.event import Outcome
from semantik_realtime.testing.contract import Author

from semantik_realtime_nats.backend import NatsBackend
from semantik_realtime_nats.clock import ServerClock
from semantik_realtime_nats.stream import Stream
from semantik_realtime_nats.sweep import sweep

Make = Callable[..., NatsBackend]

YEAR_SECONDS = 365 * 86400.0


@pytest.fixture
def topic() -> str:
    return f"job:{secrets.token_hex(6)}"


def step_the_host_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the time of day of this process; what counts on steadily goes on."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


def subscriber_stream(backend: NatsBackend) -> Stream:
    assert backend._subscriber is not None
    assert backend._subscriber.stream is not None
    return backend._subscriber.stream


@pytest.mark.parametrize("seconds", [YEAR_SECONDS, -YEAR_SECONDS])
async def test_a_step_of_the_host_clock_ends_no_topic_no_lease_and_no_job(
    url: str, make_backend: Make, topic: str, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    prefix = f"t{secrets.token_hex(5)}"
    backend, author = make_backend(url, prefix=prefix), Author()
    await backend.open()
    [first] = backend.publish([author.draft(topic, state={"n": 1})])
    assert backend.lease("place", "a", 1, 60.0)
    assert backend.lease("short", "a", 1, 20.0)
    backend.hold("worker", {"1": b"one"}, [], 60.0)

    step_the_host_clock(monkeypatch, seconds)
    stream = subscriber_stream(backend)
    assert await sweep(stream, backend._subjects) == 0
    assert (await backend.tops([topic]))[topic].cursor == first.cursor
    assert (await backend.snapshot(topic, None, 10)).cursor == first.cursor
    assert (await backend.page(topic, 0, 10)).cursor == first.cursor
    assert backend.overdue(60.0) == []
    assert not backend.lease("place", "b", 1, 60.0)
    assert not backend.lease("short", "b", 1, 20.0)
    [second] = backend.publish([author.draft(topic, state={"n": 2})])
    assert second.outcome is Outcome.APPENDED
    assert second.cursor is not None
    assert first.cursor is not None
    assert (second.cursor.epoch, second.cursor.offset) == (first.cursor.epoch, 2)


async def test_a_wrong_estimate_is_corrected_before_anything_is_over(
    url: str, make_backend: Make, topic: str
) -> None:
    backend, author = make_backend(url, prefix=f"t{secrets.token_hex(5)}"), Author()
    await backend.open()
    [first] = backend.publish([author.draft(topic)])
    running = backend._writer._running
    assert running is not None
    for stream in (subscriber_stream(backend), running.worker._stream):
        assert stream is not None
        # As after months in which the two clocks have drifted apart.
        stream._clock._ahead_seconds += YEAR_SECONDS
        stream._clock._measured_at -= 5.0
    assert (await backend.tops([topic]))[topic].cursor == first.cursor
    [second] = backend.publish([author.draft(topic)])
    assert second.cursor is not None
    assert second.cursor.offset == 2
    assert (await backend.snapshot(topic, None, 0)).cursor == second.cursor


async def test_the_clock_is_measured_again_while_a_connection_lives(
    url: str, make_backend: Make
) -> None:
    backend = make_backend(url)
    await backend.open()
    stream = subscriber_stream(backend)
    stream._clock._ahead_seconds += 1000.0
    stream._clock._measured_at -= 100.0
    assert abs(await stream.now() - time.time()) < 5.0


def test_the_estimate_lies_between_the_moments_of_the_request() -> None:
    now = 50.0
    clock = ServerClock(lambda: now)
    sent_at = clock.read()
    now = 52.0
    clock.measured(1000.0, sent_at)
    assert clock.now() == 1001.0
    now = 62.0
    assert (clock.now(), clock.age_seconds) == (1011.0, 10.0)
