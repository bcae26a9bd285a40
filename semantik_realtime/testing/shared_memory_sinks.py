"""The hooks for sinks of the memory of a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from semantik_realtime.core.sinks import Settlement
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.sink_hooks import DeadEntry, SinkBackend, SinkEntry, SinkStatus

if TYPE_CHECKING:
    from semantik_realtime.testing.shared_memory import SharedMemory


class SharedSinks:
    """See `semantik_realtime.sink_hooks.SinkBackend`; for the client of the memory to inherit."""

    _memory: SharedMemory

    @property
    def _store(self) -> SinkBackend:
        self._memory.check_process()
        return cast(SinkBackend, self._memory.store)

    @hookimpl
    def sink_open(self, name: str, filter: bytes, limit: int, idle_seconds: float) -> bool:
        return self._store.sink_open(name, filter, limit, idle_seconds)

    @hookimpl
    def sink_take(
        self, name: str, filter: bytes, limit: int, seconds: float
    ) -> Sequence[SinkEntry] | None:
        return self._store.sink_take(name, filter, limit, seconds)

    @hookimpl
    def sink_settle(self, name: str, settlements: Sequence[Settlement]) -> int:
        return self._store.sink_settle(name, settlements)

    @hookimpl
    def sink_status(self) -> Sequence[SinkStatus]:
        return self._store.sink_status()

    @hookimpl
    def sink_dead(self, name: str, after: str, limit: int) -> Sequence[DeadEntry]:
        return self._store.sink_dead(name, after, limit)

    @hookimpl
    def sink_replay(self, name: str, ids: Sequence[str]) -> int:
        return self._store.sink_replay(name, ids)

    @hookimpl
    def sink_discard(self, name: str, ids: Sequence[str]) -> int:
        return self._store.sink_discard(name, ids)

    @hookimpl
    def sink_forget(self, name: str) -> bool:
        return self._store.sink_forget(name)
