"""Waiting for a condition, and reading a topic's log."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from semantik_realtime.hookspecs import Snapshot


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until ``condition`` is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds:g} s"
        time.sleep(0.005)


class Reader:
    """Reads a backend from a loop of its own, in a thread."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._wait(backend.open())

    def snapshot(self, topic: str) -> Snapshot:
        snapshot: Snapshot = self._wait(self._backend.snapshot(topic, None, 1000))
        return snapshot

    def close(self) -> None:
        self._wait(self._backend.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)


class Log:
    """The log of a topic, read anew at each use."""

    def __init__(self, reader: Reader, topic: str) -> None:
        self._reader = reader
        self._topic = topic

    def snapshot(self) -> Snapshot:
        return self._reader.snapshot(self._topic)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(event.json) for event in self.snapshot().events]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def statuses(self) -> list[tuple[int, str]]:
        """Attempt and status of each event, without repetitions."""
        pairs = [(e["state"]["attempt"], e["state"]["status"]) for e in self.events]
        return [pair for n, pair in enumerate(pairs) if n == 0 or pair != pairs[n - 1]]

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]

    @property
    def state(self) -> dict[str, Any]:
        return self.last["state"]

    @property
    def owner(self) -> str | None:
        return self.snapshot().owner
