"""How many producers a topic remembers, and how long, to recognize a draft that is sent again."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest
import redis

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.core.limits import KEPT_PRODUCERS, MAX_PRODUCERS, PRODUCER_SECONDS
from semantik_realtime.testing.contract import Author

TOPIC = "user:7"
BATCH = 500


@pytest.mark.valkey
def test_redis_forgets_producers_that_are_too_many_or_appended_nothing_for_a_day(
    server_url: Callable[[str], str],
) -> None:
    url = server_url("valkey")
    backend = RedisBackend(load_settings(url=url, prefix=f"t{secrets.token_hex(4)}"))
    *_, seen = backend._keys(TOPIC)
    with redis.Redis.from_url(url) as admin:
        first = Author().draft(TOPIC)
        backend.publish([first])
        for _ in range(MAX_PRODUCERS // BATCH + 1):
            backend.publish([Author().draft(TOPIC) for _ in range(BATCH)])
            assert admin.hlen(seen) <= MAX_PRODUCERS
        assert admin.hlen(seen) > MAX_PRODUCERS - BATCH
        # As if all of them had appended a day ago.
        old = int(admin.time()[0]) - round(PRODUCER_SECONDS) - 1
        admin.hset(seen, mapping=dict.fromkeys(admin.hkeys(seen), f"1 {old}"))
        newest = [Author().draft(TOPIC) for _ in range(KEPT_PRODUCERS)]
        backend.publish(newest)
        assert admin.hlen(seen) == KEPT_PRODUCERS
        assert {one.outcome for one in backend.publish(newest)} == {Outcome.DUPLICATE}
    backend.close_writer()


def test_memory_forgets_producers_that_are_too_many_or_appended_nothing_for_a_day() -> None:
    now = [0.0]
    backend = MemoryBackend(load_settings(backend="memory"), clock=lambda: now[0])
    for _ in range(MAX_PRODUCERS + 10):
        backend.publish([Author().draft(TOPIC, due_at=None)])
    numbers = backend._logs[TOPIC].numbers
    assert len(numbers) == MAX_PRODUCERS
    # The topic itself lives on with each append.
    for _ in range(3):
        now[0] += PRODUCER_SECONDS / 2
        backend.publish([Author().draft(TOPIC)])
    assert len(backend._logs[TOPIC].numbers) == KEPT_PRODUCERS
