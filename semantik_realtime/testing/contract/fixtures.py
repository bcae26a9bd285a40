"""What every part of the contract stands on: two knobs and the backends under test."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio


@pytest.mark.asyncio
class Fixtures:
    """Fixtures of the contract; ``make_backend`` is the subclass's to give."""

    shares_storage = True
    """Whether two instances see one log. A backend that lives in one process says False, and
    what needs two of them is not asked of it."""
    dense_offsets = True
    """Whether the offsets of a topic are 1, 2, 3 … False: they only grow."""

    @pytest.fixture
    def make_backend(self) -> Callable[..., Any]:
        pytest.fail(
            f"{type(self).__name__} gives no fixture make_backend: a function that takes settings "
            "by keyword and returns a backend that is not open"
        )

    @pytest_asyncio.fixture
    async def open_backend(
        self, make_backend: Callable[..., Any]
    ) -> AsyncIterator[Callable[..., Any]]:
        opened: list[Any] = []

        async def open_one(**settings: Any) -> Any:
            backend = make_backend(**settings)
            opened.append(backend)
            await backend.open()
            return backend

        yield open_one
        for backend in opened:
            await backend.close()
            backend.close_writer()

    @pytest_asyncio.fixture
    async def backend(self, open_backend: Callable[..., Any]) -> Any:
        return await open_backend()

    @pytest.fixture
    def topic(self) -> str:
        return f"job:{secrets.token_hex(6)}"


@asynccontextmanager
async def meanwhile(work: Callable[[], object]) -> AsyncIterator[None]:
    """Run ``work`` in a thread beside the block; what it raises fails the test."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        yield
    finally:
        await running
