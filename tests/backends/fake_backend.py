"""A backend and a clock that a test controls."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from semantik_realtime.errors import BackendError
from semantik_realtime.hookspecs import Page, Snapshot, Status

REPLIES: dict[str, Any] = {
    "snapshot": Snapshot(None),
    "page": Page(None),
    "tops": {},
    "publish": [],
    "claim": 1,
    "delete": True,
    "lease": True,
    "release": True,
    "hold": True,
    "overdue": [],
    "status": Status("fake", True, warnings=["set appendonly yes"]),
}


class FakeBackend:
    """A backend whose hooks return, raise or hang, as the test sets them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        """The names of the hooks that were called, in order."""
        self.errors: dict[str, BackendError] = {}
        """What each hook raises; set by the test."""
        self.hanging: set[str] = set()
        """Hooks that do not return; set by the test."""
        self.release_publish = threading.Event()
        """Set by the test to let a hanging `publish` return."""
        for name in ("claim", "delete", "lease", "release", "hold", "overdue", "close_writer"):
            setattr(self, name, lambda *_, name=name: self.answer(name))
        reads = ("open", "close", "subscribe", "unsubscribe", "snapshot", "page", "tops", "status")
        for name in reads:
            setattr(self, name, lambda *_, name=name: self.read(name))

    def answer(self, name: str) -> Any:
        self.calls.append(name)
        if name in self.errors:
            raise self.errors[name]
        return REPLIES.get(name)

    async def read(self, name: str) -> Any:
        if name in self.hanging:
            self.calls.append(name)
            await asyncio.sleep(60)
        return self.answer(name)

    def publish(self, drafts: object) -> Any:
        if "publish" in self.hanging:
            assert self.release_publish.wait(10)
        return self.answer("publish")

    def count(self, name: str) -> int:
        return self.calls.count(name)


class Clock:
    """Takes the place of the module `time`; the test sets the seconds."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds
