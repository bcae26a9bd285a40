"""Every key of a topic on Redis has an expiry, which an append sets only when it is due."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Draft, StateChange, encode_body
from semantik_realtime.testing.servers import RedisServer, running, valkey_program

RETENTION, OPEN, GRACE = 6_400.0, 64_000.0, 640.0
KEYS = ("meta", "log", "state", "fence", "seen")


@pytest.fixture
def url() -> Iterator[str]:
    with running(RedisServer(valkey_program())) as server:
        yield server.url


@pytest.fixture
def server(url: str) -> Any:
    return redis.Redis.from_url(url)


@pytest.fixture
def backend(url: str) -> Iterator[RedisBackend]:
    settings = load_settings(
        backend="redis",
        url=url,
        retention_seconds=RETENTION,
        open_seconds=OPEN,
        grace_seconds=GRACE,
    )
    backend = RedisBackend(settings)
    yield backend
    backend.close_writer()


def append(backend: RedisBackend, number: int, topic: str = "user:7", **more: Any) -> None:
    state = more.pop("state", None)
    body = encode_body("note", "", "k", **({} if state is None else {"state": state}))
    change = StateChange.KEEP if state is None else StateChange.SET
    draft = Draft(topic=topic, type="note", key="k", body=body, change=change, **more)
    draft.producer, draft.number = "p", number
    backend.publish([draft])


def seconds_left(server: Any, topic: str) -> dict[str, float]:
    """Return how long each key of a topic is kept that there is; below 0: without end."""
    found = {part: server.pttl(f"semantik:{{{topic}}}:{part}") for part in KEYS}
    return {part: left / 1000 for part, left in found.items() if left != -2}


def test_a_topic_is_kept_for_its_time_after_the_last_event_and_a_64th_longer_at_most(
    backend: RedisBackend, server: Any
) -> None:
    for number in (1, 2, 3):
        append(backend, number)
    left = seconds_left(server, "user:7")
    assert left.keys() == {"meta", "log", "seen"}
    assert all(RETENTION <= each <= RETENTION * 65 / 64 for each in left.values())


def test_an_append_sets_the_expiries_only_when_less_than_the_whole_time_is_left(
    backend: RedisBackend, server: Any
) -> None:
    append(backend, 1)
    keys = [f"semantik:{{user:7}}:{part}" for part in ("meta", "log", "seen")]
    for kept, renewed in ((RETENTION + 50, False), (RETENTION - 50, True)):
        for key in keys:
            server.pexpire(key, round(kept * 1000))
        append(backend, 2 + renewed)
        left = seconds_left(server, "user:7").values()
        assert all((each > RETENTION + 60) == renewed for each in left)


def test_a_key_that_a_later_append_makes_has_an_expiry_too(
    backend: RedisBackend, server: Any
) -> None:
    append(backend, 1)
    append(backend, 2, state={"status": "running"})
    append(backend, 3, state={"status": "running"}, job="7", attempt=1)
    left = seconds_left(server, "user:7")
    assert left.keys() == set(KEYS)
    assert all(RETENTION <= each <= RETENTION * 65 / 64 for each in left.values())


def test_a_log_that_was_deleted_has_an_expiry_when_it_is_made_again(
    backend: RedisBackend, server: Any
) -> None:
    append(backend, 1)
    server.delete("semantik:{user:7}:log")
    append(backend, 2)
    assert seconds_left(server, "user:7")["log"] >= RETENTION


def test_the_end_of_a_job_shortens_the_time_of_its_topic_at_once(
    backend: RedisBackend, server: Any
) -> None:
    topic = "job:k"
    append(backend, 1, topic, state={"status": "running"}, job="k", attempt=1)
    assert all(left >= OPEN for left in seconds_left(server, topic).values())
    append(backend, 2, topic, state={"status": "completed"}, job="k", attempt=1, terminal=True)
    left = seconds_left(server, topic)
    assert left.keys() == set(KEYS)
    assert all(GRACE <= each <= GRACE * 65 / 64 for each in left.values())
