"""A page that shows all jobs of a user, and when it showed what."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import Any, NamedTuple

from clients import NativeClient
from web_servers import WebServer
from websockets.exceptions import WebSocketException

from semantik_realtime.core.lifecycle import END_STATUSES, END_TYPES


class Shown(NamedTuple):
    """A status of a job's attempt, and when it was shown first, on the monotonic clock."""

    status: str
    attempt: int
    at: float

    @property
    def is_end(self) -> bool:
        return self.status in END_STATUSES


class EndWatcher(NativeClient):
    """Follows a user's feed, and keeps only the statuses of the jobs."""

    def __init__(self, web_server: WebServer, feed: str, **options: Any) -> None:
        super().__init__(web_server, feed, **options)
        self.feed = feed
        self.shown: dict[str, list[Shown]] = {}
        """What was shown of each job, in the order in which it was."""
        self.faults: list[str] = []
        self.closings: Counter[int | None] = Counter()
        """The close codes of connections that the server or the network has ended."""
        # The events of ends, by job and attempt.
        self._ends: dict[tuple[str, int], dict[str, Any]] = {}
        # Connects again. From `__aenter__` to `__aexit__`.
        self._staying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EndWatcher:
        await self.open()
        self._staying = asyncio.create_task(self._stay())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._staying is not None
        self._staying.cancel()
        await asyncio.wait([self._staying])
        await self.close()

    async def _stay(self) -> None:
        """Connect again whenever the connection has ended, as a page does."""
        while True:
            assert self._reading is not None
            await asyncio.wait([self._reading])
            if error := self._reading.exception():
                self.faults.append(repr(error))
            self.closings[self.closed] += 1
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                await asyncio.sleep(0.5)
                await self.open()

    def last(self, job: str) -> Shown | None:
        """Return what the page shows of a job now."""
        found = self.shown.get(job)
        return found[-1] if found else None

    async def _receive(self, frame: dict[str, Any]) -> None:
        await super()._receive(frame)
        if frame["op"] == "error":
            self.faults.append(f"error frame {frame}")
        if frame["op"] == "sync" and frame["mode"] == "snapshot":
            for job, state in self.views[self.feed].states.items():
                self._note(job, state)
        for event in self.applied[self.feed]:
            state = event.get("state")
            if state is None:
                continue
            self._note(event["key"], state)
            if event["type"] in END_TYPES:
                end = event["key"], state["attempt"]
                if end in self._ends:
                    self.faults.append(f"twice in the feed: {self._ends[end]} {event}")
                self._ends[end] = event
        # Of hours of events nothing else is needed.
        for kept in (self.applied[self.feed], self.history[self.feed], self.frames, self.syncs):
            kept.clear()

    def _note(self, job: str, state: dict[str, Any]) -> None:
        shown = self.shown.setdefault(job, [])
        now = state["status"], state["attempt"]
        if not shown or (shown[-1].status, shown[-1].attempt) != now:
            shown.append(Shown(*now, time.monotonic()))
