"""The contract over every row of the matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from semantik_realtime.backends.loader import load_backend
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
