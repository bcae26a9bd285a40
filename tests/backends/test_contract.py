"""The contract over every row of the matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.config import load_settings
from semantik_realtime.testing.contract import BackendContract
from semantik_realtime.testing.servers import ROWS


@pytest.mark.every_row
class TestContract(BackendContract):
    @pytest.fixture
    def make_backend(self, row: str, server_url: Callable[[str], str]) -> Callable[..., Any]:
        backend, url = ROWS[row].backend, server_url(row)
        self.shares_storage = ROWS[row].shares_storage
        return lambda **settings: load_backend(load_settings(backend=backend, url=url, **settings))

    async def break_connection(self, backend: Any) -> None:
        if isinstance(backend, RedisBackend):
            for subscriber in backend._subscriptions.subscribers:
                subscriber._connection._writer.transport.abort()
        elif (subscriber := getattr(backend, "_subscriber", None)) is not None:
            await subscriber.stream.connection.close()
