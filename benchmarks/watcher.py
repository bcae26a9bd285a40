"""A subscriber beside the publisher: it keeps every event that reaches its sink.

In a process of its own, so that it does not share the publisher's interpreter;
in a thread where the backend is within the process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.broker import settings_for
from semantik_realtime.backends.loader import load_backend
from semantik_realtime.core.event import Event

SILENCE_SECONDS = 5.0
"""After so long without an event, what has not come is lost."""
END_SECONDS = 10.0

Seen = dict[str, list[bytes]]


class Watcher:
    """The near end: says what to watch, and gets what was seen."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self._pipe = pipe

    def watch(self, topics: Sequence[str]) -> None:
        """Forget what was seen and follow ``topics``; returns when they are subscribed."""
        self._pipe.send(list(topics))
        if self._pipe.recv() != "watching":
            raise RuntimeError("the watcher does not follow")

    def collect(self, count: int) -> Seen:
        """What was seen, as soon as that is ``count`` events, or nothing more comes."""
        self._pipe.send(count)
        seen: Seen = self._pipe.recv()
        return seen


class _Record:
    """A sink that keeps everything. A break shows as what is missing then."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, Sequence[Event]]] = []
        self.count = 0
        self.heard_at = time.monotonic()

    def events(self, topic: str, epoch: str, prev: int, events: Sequence[Event]) -> None:
        self.batches.append((topic, events))
        self.count += len(events)
        self.heard_at = time.monotonic()

    def interrupted(self, topic: str) -> None:
        pass

    def gone(self, topic: str) -> None:
        pass


@contextmanager
def watching(broker: str, url: str | None, backend: Any) -> Iterator[Watcher]:
    """A watcher of the server at ``url``; without one, of ``backend`` itself."""
    near, far = multiprocessing.Pipe()
    runner: Any
    if url is None:
        runner = threading.Thread(target=_run, args=(backend, far), daemon=True)
    else:
        context = multiprocessing.get_context("spawn")
        runner = context.Process(target=_run_process, args=(broker, url, far), daemon=True)
    runner.start()
    if url is not None:
        # The other end is the child's alone: its death is heard here.
        far.close()
    try:
        yield Watcher(near)
    finally:
        with suppress(OSError):
            near.send(None)
        runner.join(END_SECONDS)
        near.close()


def _run_process(broker: str, url: str, pipe: Connection[Any, Any]) -> None:
    _run(load_backend(settings_for(broker, url)), pipe)


def _run(backend: Any, pipe: Connection[Any, Any]) -> None:
    asyncio.run(_follow(backend, pipe))


async def _follow(backend: Any, pipe: Connection[Any, Any]) -> None:
    await backend.open()
    record = _Record()
    topics: list[str] = []
    while (order := await asyncio.to_thread(pipe.recv)) is not None:
        if isinstance(order, list):
            for topic in topics:
                await backend.unsubscribe(topic)
            topics, record = order, _Record()
            for topic in topics:
                await backend.subscribe(topic, record)
            pipe.send("watching")
        else:
            record.heard_at = time.monotonic()
            while record.count < order and time.monotonic() < record.heard_at + SILENCE_SECONDS:
                await asyncio.sleep(0.01)
            seen: Seen = {topic: [] for topic in topics}
            for topic, events in record.batches:
                seen[topic] += [event.json for event in events]
            pipe.send(seen)
    await backend.close()
