"""A hub for the degraded mode, with connections that record every notice."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Mapping
from typing import Any

from semantik_realtime.backends.guard import GuardedBackend


class RecordingViewer:
    """A connection that keeps every notice, with the thread that sent it."""

    def __init__(self, *allowed: str) -> None:
        self.allowed: dict[str, str | None] = dict.fromkeys(allowed)
        self.notices: list[tuple[Any, ...]] = []
        """The op and the arguments of each notice, in order."""
        self.threads: set[int] = set()

    def degraded(self, since: str) -> None:
        self._add("degraded", since)

    def restored(self) -> None:
        self._add("restored")

    def provisional(self, topic: str, epoch: str, source: str, states: Mapping[str, bytes]) -> None:
        decoded = {key: json.loads(state) for key, state in states.items()}
        self._add("provisional", topic, epoch, source, decoded)

    def _add(self, *notice: object) -> None:
        self.notices.append(notice)
        self.threads.add(threading.get_ident())

    def ops(self) -> list[str]:
        return [notice[0] for notice in self.notices]

    def shown(self, source: str) -> list[tuple[str, dict[str, Any]]]:
        """Return the topic and the states of each provisional notice from ``source``."""
        notices = [notice for notice in self.notices if notice[0] == "provisional"]
        return [(topic, states) for _, topic, _, where, states in notices if where == source]


class FakeHub:
    """A `Fanout` whose resyncs end when `resynced` is set."""

    def __init__(self, backend: GuardedBackend, steps: list[str]) -> None:
        self.connections: set[RecordingViewer] = set()
        self.tasks: dict[asyncio.Task[Any], str] = {}
        """Every task that was spawned, with its name."""
        self.resynced = asyncio.Event()
        """Cleared: a resync does not end."""
        self.resynced.set()
        self._backend = backend
        self._steps = steps

    def add(self, *allowed: str) -> RecordingViewer:
        """Add a connection that may get the states of these topics."""
        viewer = RecordingViewer(*allowed)
        self.connections.add(viewer)
        return viewer

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks[task] = name
        return task

    def running(self, name: str) -> list[asyncio.Task[Any]]:
        """Return the tasks of this name that have not ended."""
        return [task for task, other in self.tasks.items() if other == name and not task.done()]

    async def connect(self) -> None:
        await self._backend.open()

    async def check_tops(self) -> None:
        pass

    def resync_all(self) -> set[asyncio.Task[None]]:
        self._steps.append("resync")
        return {asyncio.ensure_future(self._resync())}

    async def _resync(self) -> None:
        await self.resynced.wait()
        self._steps.append("resynced")
