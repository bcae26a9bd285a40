"""The plugin: its wrappers, and what they measure."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Awaitable, Generator, Mapping, Sequence
from typing import TypeVar

import msgspec

from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Cursor, Draft, Event, Receipt
from semantik_realtime.hookspecs import Page, Sink, SinkProxy, Snapshot, hookimpl

Result = TypeVar("Result")

_encode = msgspec.json.Encoder().encode


class Stamp(msgspec.Struct, frozen=True):
    """Who sent an event, and when (seconds since 1970)."""

    host: str
    pid: int
    at: float


class _Stamped(msgspec.Struct):
    stamp: Stamp | None = None


_decode = msgspec.json.Decoder(_Stamped).decode


class Timing(msgspec.Struct):
    """How often something happened, and how long it took."""

    calls: int = 0
    seconds: float = 0.0
    longest: float = 0.0


class Stamps:
    """Wraps `publish`, `subscribe`, `snapshot` and `page`. For any thread.

    Args:
        max_bytes: an event that would be bigger with its stamp gets none;
            None: the limit of the settings.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._host = socket.gethostname()
        # By hook, and "lag": from the stamp to the sink. Guarded by the lock.
        self._timings: dict[str, Timing] = {}
        self._lock = threading.Lock()

    def report(self) -> Mapping[str, Timing]:
        """Return the timings of each hook, and as ``lag`` how long events were under way."""
        with self._lock:
            return {name: msgspec.structs.replace(one) for name, one in self._timings.items()}

    @hookimpl(wrapper=True)
    def publish(self, drafts: list[Draft]) -> Generator[None, Sequence[Receipt], Sequence[Receipt]]:
        began = time.monotonic()
        drafts[:] = [self._stamped(draft) for draft in drafts]
        try:
            return (yield)
        finally:
            self.add("publish", time.monotonic() - began)

    @hookimpl(wrapper=True)
    def subscribe(
        self, topic: str, sink: SinkProxy
    ) -> Generator[None, Awaitable[None], Awaitable[None]]:
        sink.target = _LagSink(sink.target, self)
        subscribing = yield
        return self._measured("subscribe", subscribing)

    @hookimpl(wrapper=True)
    def snapshot(
        self, topic: str, after: Cursor | None, history: int
    ) -> Generator[None, Awaitable[Snapshot], Awaitable[Snapshot]]:
        reading = yield
        return self._measured("snapshot", reading)

    @hookimpl(wrapper=True)
    def page(
        self, topic: str, after: int, limit: int
    ) -> Generator[None, Awaitable[Page], Awaitable[Page]]:
        reading = yield
        return self._measured("page", reading)

    def add(self, name: str, seconds: float) -> None:
        """Count one call, or one event under way."""
        with self._lock:
            timing = self._timings.setdefault(name, Timing())
            timing.calls += 1
            timing.seconds += seconds
            timing.longest = max(timing.longest, seconds)

    async def _measured(self, name: str, call: Awaitable[Result]) -> Result:
        began = time.monotonic()
        try:
            return await call
        finally:
            self.add(name, time.monotonic() - began)

    def _stamped(self, draft: Draft) -> Draft:
        if self._max_bytes is None:
            self._max_bytes = load_settings().max_event_bytes
        stamp = _encode(Stamp(self._host, os.getpid(), time.time()))
        body = b'%b,"stamp":%b}' % (draft.body[:-1], stamp)
        if len(body) > self._max_bytes:
            return draft
        return msgspec.structs.replace(draft, body=body)


class _LagSink:
    """Passes events on, and measures how long each was under way."""

    def __init__(self, target: Sink, stamps: Stamps) -> None:
        self._target = target
        self._stamps = stamps

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        now = time.time()
        for event in events:
            stamp = _decode(event.json).stamp
            if stamp is not None:
                self._stamps.add("lag", max(0.0, now - stamp.at))
        self._target.events(topic, prev, events)

    def interrupted(self, topic: str) -> None:
        self._target.interrupted(topic)

    def gone(self, topic: str) -> None:
        self._target.gone(topic)


stamps = Stamps()
"""What the entry point registers: one for the process."""
