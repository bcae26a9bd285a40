"""The contract over every row of the matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.testing.contract import BackendContract


@pytest.mark.memory
class TestMemory(BackendContract):
    shares_storage = False

    @pytest.fixture
    def make_backend(self) -> Callable[..., Any]:
        return lambda **settings: MemoryBackend(load_settings(backend="memory", **settings))


class RedisRow(BackendContract):
    row: str

    @pytest.fixture
    def url(self, server_url: Callable[[str], str]) -> str:
        return server_url(self.row)

    @pytest.fixture
    def make_backend(self, url: str) -> Iterator[Callable[..., Any]]:
        return lambda **settings: RedisBackend(load_settings(url=url, **settings))


@pytest.mark.fakeredis
class TestFakeredis(RedisRow):
    row = "fakeredis"


@pytest.mark.valkey
class TestValkey(RedisRow):
    row = "valkey"


@pytest.mark.redis
class TestRedis(RedisRow):
    row = "redis"
