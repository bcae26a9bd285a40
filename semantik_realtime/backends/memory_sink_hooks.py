"""The hooks for sinks of the backend in memory: under its lock, with its clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from semantik_realtime.backends.memory_sinks import MemorySinks
from semantik_realtime.core.sinks import Settlement
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.sink_hooks import DeadEntry, SinkEntry, SinkStatus


class MemorySinkHooks:
    """See `semantik_realtime.sink_hooks.SinkBackend`; for the backend to inherit."""

    _lock: threading.Lock
    _clock: Callable[[], float]
    _queues: MemorySinks

    @hookimpl
    def sink_open(self, name: str, filter: bytes, limit: int, idle_seconds: float) -> bool:
        with self._lock:
            return self._queues.open(name, filter, limit, idle_seconds, self._clock())

    @hookimpl
    def sink_take(
        self, name: str, filter: bytes, limit: int, seconds: float
    ) -> list[SinkEntry] | None:
        with self._lock:
            return self._queues.take(name, filter, limit, seconds, self._clock())

    @hookimpl
    def sink_settle(self, name: str, settlements: Sequence[Settlement]) -> int:
        with self._lock:
            return self._queues.settle(name, settlements, self._clock())

    @hookimpl
    def sink_status(self) -> list[SinkStatus]:
        with self._lock:
            return self._queues.status(self._clock())

    @hookimpl
    def sink_dead(self, name: str, after: str, limit: int) -> list[DeadEntry]:
        with self._lock:
            return self._queues.dead(name, after, limit)

    @hookimpl
    def sink_replay(self, name: str, ids: Sequence[str]) -> int:
        with self._lock:
            return self._queues.remove_dead(name, ids, self._clock(), replay=True)

    @hookimpl
    def sink_discard(self, name: str, ids: Sequence[str]) -> int:
        with self._lock:
            return self._queues.remove_dead(name, ids, self._clock(), replay=False)

    @hookimpl
    def sink_forget(self, name: str) -> bool:
        with self._lock:
            return self._queues.forget(name)
