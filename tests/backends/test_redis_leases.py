"""A process renews its places in one round trip, and only when half of their time is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis

from semantik_realtime.backends.redis import leases
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.testing.servers import RedisServer, running, valkey_program


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def url() -> Iterator[str]:
    with running(RedisServer(valkey_program())) as server:
        yield server.url


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leases, "time", clock)
    return clock


@pytest.fixture
def backend(url: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(load_settings(backend="redis", url=url))
    yield backend
    backend.close_writer()


@pytest.fixture
def calls(backend: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many places each round trip takes or renews."""
    made: list[int] = []
    run_each = backend._writer.run_each

    def noted(script: Any, many: Sequence[Any]) -> list[Any]:
        made.append(len(many))
        return run_each(script, many)

    monkeypatch.setattr(backend._writer, "run_each", noted)
    return made


def ends(url: str, name: str) -> dict[str, float]:
    """Return the holders of a lease, and when each place ends."""
    found = redis.Redis.from_url(url).zrange(f"semantik:lease:{{{name}}}", 0, -1, withscores=True)
    return {holder.decode(): end for holder, end in found}


def test_a_place_is_renewed_when_half_of_its_time_is_over_together_with_all_others(
    backend: RedisBackend, clock: Clock, calls: list[int], url: str
) -> None:
    users = [f"u{number}" for number in range(5)]
    for user in users:
        assert backend.lease(user, "h", 3, 60.0)
    assert calls == [1] * 5
    before = [ends(url, user)["h"] for user in users]
    calls.clear()
    clock.now += 20
    assert all(backend.lease(user, "h", 3, 60.0) for user in users)
    assert calls == []
    clock.now += 20
    assert all(backend.lease(user, "h", 3, 60.0) for user in users)
    assert calls == [5]
    after = [ends(url, user)["h"] for user in users]
    assert all(new > old for new, old in zip(after, before, strict=True))


def test_a_place_that_nobody_asks_for_any_more_is_not_renewed(
    backend: RedisBackend, clock: Clock, calls: list[int], url: str
) -> None:
    for user in ("stays", "gone"):
        assert backend.lease(user, "h", 3, 60.0)
    before = ends(url, "gone")
    calls.clear()
    clock.now += 35
    assert backend.lease("stays", "h", 3, 60.0)
    assert calls == [1]
    assert ends(url, "gone") == before


def test_a_released_place_is_free_at_once_and_short_leases_reach_the_server(
    backend: RedisBackend, clock: Clock, calls: list[int]
) -> None:
    assert backend.lease("u", "a", 1, 60.0)
    assert not backend.lease("u", "b", 1, 60.0)
    assert backend.release("u", "a")
    assert backend.lease("u", "b", 1, 60.0)
    assert not backend.lease("u", "a", 1, 60.0)
    calls.clear()
    for _ in range(3):
        assert backend.lease("probe", "h", 1, 5.0)
    assert calls == [1, 1, 1]


def test_a_place_that_the_server_refuses_stops_no_other_renewal(
    backend: RedisBackend, clock: Clock, calls: list[int], url: str
) -> None:
    for user in ("broken", "whole"):
        assert backend.lease(user, "h", 3, 60.0)
    redis.Redis.from_url(url).set("semantik:lease:{broken}", "no sorted set")
    before = ends(url, "whole")["h"]
    clock.now += 20
    for user in ("broken", "whole"):
        assert backend.lease(user, "h", 3, 60.0)
    clock.now += 20
    assert backend.lease("whole", "h", 3, 60.0)
    assert ends(url, "whole")["h"] > before
