"""The contract of every backend, on default settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from semantik_realtime.config import load_settings
from semantik_realtime.testing.contract import BackendContract

from semantik_realtime_nats.backend import NatsBackend


class TestNats(BackendContract):
    @pytest.fixture
    def make_backend(self, url: str) -> Callable[..., Any]:
        return lambda **settings: NatsBackend(load_settings(backend="nats", url=url, **settings))

    async def break_connection(self, backend: NatsBackend) -> None:
        assert backend._subscriber is not None
        assert backend._subscriber.stream is not None
        await backend._subscriber.stream.connection.close()
