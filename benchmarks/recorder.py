"""Records every event that a backend delivers to a sink, beside the publisher.

It runs in a process of its own, so that it does not share the publisher's interpreter; in a
thread if the backend ends at the process.
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
from semantik_realtime.core.event import Cursor, Event

SILENCE_SECONDS = 5.0
"""After so long without an event, the missing events are lost."""
END_SECONDS = 10.0
"""How long the recorder may take to end."""

Recorded = dict[str, list[bytes]]
"""The events of each topic as JSON, in the order in which they arrived."""


class Recorder:
    """The publisher's end of the pipe to a recorder. Its methods block."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self._pipe = pipe

    def subscribe(self, topics: Sequence[str]) -> None:
        """Subscribe to ``topics`` instead of the previous ones, and forget their events."""
        self._pipe.send(list(topics))
        if self._pipe.recv() != "subscribed":
            raise RuntimeError("the recorder did not subscribe")

    def collect(self, count: int) -> Recorded:
        """Return the events as soon as there are ``count``, or after `SILENCE_SECONDS` of none."""
        self._pipe.send(count)
        recorded: Recorded = self._pipe.recv()
        return recorded


class _RecordingSink:
    """Keeps every event. What an interruption costs is counted later, as lost events."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, Sequence[Event]]] = []
        """The topic and events of each call."""
        self.count = 0
        """How many events that is."""
        self.received_at = time.monotonic()
        """When the newest arrived."""

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        self.batches.append((topic, events))
        self.count += len(events)
        self.received_at = time.monotonic()

    def interrupted(self, topic: str) -> None:
        pass

    def gone(self, topic: str) -> None:
        pass


@contextmanager
def running_recorder(broker: str, url: str | None, backend: Any) -> Iterator[Recorder]:
    """Run a recorder of the server at ``url``; without a URL, of ``backend`` itself."""
    near, far = multiprocessing.Pipe()
    runner: Any
    if url is None:
        runner = threading.Thread(target=_run, args=(backend, far), daemon=True)
    else:
        context = multiprocessing.get_context("spawn")
        runner = context.Process(target=_run_process, args=(broker, url, far), daemon=True)
    runner.start()
    if url is not None:
        # With the only other copy in the child, `recv` raises EOFError when the child ends.
        far.close()
    try:
        yield Recorder(near)
    finally:
        with suppress(OSError):
            near.send(None)
        runner.join(END_SECONDS)
        near.close()


def _run_process(broker: str, url: str, pipe: Connection[Any, Any]) -> None:
    _run(load_backend(settings_for(broker, url)), pipe)


def _run(backend: Any, pipe: Connection[Any, Any]) -> None:
    asyncio.run(_record(backend, pipe))


async def _record(backend: Any, pipe: Connection[Any, Any]) -> None:
    """Follow the pipe: a list has topics to subscribe to, a number is a count, None is the end."""
    await backend.open()
    sink = _RecordingSink()
    topics: list[str] = []
    while (order := await asyncio.to_thread(pipe.recv)) is not None:
        if isinstance(order, list):
            for topic in topics:
                await backend.unsubscribe(topic)
            topics, sink = order, _RecordingSink()
            for topic in topics:
                await backend.subscribe(topic, sink)
            pipe.send("subscribed")
        else:
            pipe.send(await _collect(sink, topics, order))
    await backend.close()


async def _collect(sink: _RecordingSink, topics: Sequence[str], count: int) -> Recorded:
    start = time.monotonic()
    while sink.count < count:
        if time.monotonic() > max(start, sink.received_at) + SILENCE_SECONDS:
            break
        await asyncio.sleep(0.01)
    recorded: Recorded = {topic: [] for topic in topics}
    for topic, events in sink.batches:
        recorded[topic] += [event.json for event in events]
    return recorded
