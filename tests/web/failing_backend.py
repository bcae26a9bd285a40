"""A backend in memory that fails on demand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Cursor, Draft, Receipt
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Snapshot, Top, hookimpl

SETTINGS = Settings(backend="memory", url=None)


class FailingBackend(MemoryBackend):
    """Fails reads and writes on demand, and holds snapshots and publishes back at gates."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        super().__init__(settings)
        self.fails_reads = False
        self.fails_writes = False
        self.fails_once_for = ""
        """A topic whose next `tops` fails."""
        self.gate = asyncio.Event()
        """Cleared: a `snapshot` does not return."""
        self.gate.set()
        self.write_gate = threading.Event()
        """Cleared: a `publish` does not return."""
        self.write_gate.set()

    def fail(self) -> None:
        """Fail every read and write from now on."""
        self.fails_reads = self.fails_writes = True

    def recover(self) -> None:
        """Answer again."""
        self.fails_reads = self.fails_writes = False

    @hookimpl
    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        self._check(self.fails_writes)
        self.write_gate.wait()
        return super().publish(drafts)

    @hookimpl
    def lease(self, name: str, holder: str, limit: int, seconds: float) -> bool:
        self._check(self.fails_writes)
        return super().lease(name, holder, limit, seconds)

    @hookimpl
    async def tops(self, topics: Sequence[str]) -> dict[str, Top]:
        self._check(self.fails_reads)
        if self.fails_once_for in topics:
            self.fails_once_for = ""
            self._check(True)
        return await super().tops(topics)

    @hookimpl
    async def snapshot(self, topic: str, after: Cursor | None, history: int) -> Snapshot:
        self._check(self.fails_reads)
        await self.gate.wait()
        return await super().snapshot(topic, after, history)

    def _check(self, fails: bool) -> None:
        if fails:
            raise BackendUnavailable("the backend fails on demand")
