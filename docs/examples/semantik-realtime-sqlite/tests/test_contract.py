"""The contract of every backend, on default settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.testing.contract import BackendContract


class TestSqlite(BackendContract):
    uses_prefix = False

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[..., Any]:
        url = f"sqlite:///{tmp_path}/realtime.db"
        return lambda **settings: load_backend(load_settings(backend="sqlite", url=url, **settings))

    async def break_connection(self, backend: Any) -> None:
        backend._subscriber._database.close()
