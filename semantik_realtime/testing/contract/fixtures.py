"""The fixtures of every part of the contract, and the options of a backend's author."""

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
    """The base class. A subclass of the contract defines the fixture ``make_backend``."""

    shares_storage = True
    """Whether two instances use the same logs. False for a backend that lives in one process:
    the tests that need two instances are then left out."""
    dense_offsets = True
    """Whether the offsets of a topic are 1, 2, 3 … False: they only grow."""

    uses_prefix = True
    """Whether the setting ``prefix`` separates applications. False: each has a storage of its
    own, a file for example, and every call of ``make_backend`` in a test uses the same one."""

    async def break_connection(self, backend: Any) -> None:
        """Break the connection over which ``backend``, an open instance, receives events.

        Override it: when it returns, nothing that is appended afterwards may arrive over the old
        connection. As it stands it does nothing, and the tests that need it are left out.
        """

    @pytest.fixture
    def make_backend(self) -> Callable[..., Any]:
        pytest.fail(
            f"{type(self).__name__} has no fixture make_backend, which returns a function: it gets "
            "settings by keyword and returns a backend that is not open"
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
async def in_thread(work: Callable[[], object]) -> AsyncIterator[None]:
    """Run ``work`` in a thread during the block, and wait for it; its error fails the test."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        yield
    finally:
        await running
