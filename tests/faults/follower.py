"""A client that counts what it receives: order, duplicates, gaps and ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clients import NativeClient
from record import CLOCK
from web_servers import WebServer

ENDED = frozenset({"completed", "failed", "cancelled", "lost"})


class Follower(NativeClient):
    """Counts events and faults, and keeps no events."""

    def __init__(self, web_server: WebServer, *topics: str, **options: Any) -> None:
        super().__init__(web_server, *topics, **options)
        self.faults: Counter[str] = Counter()
        """Faults: ``lost``, ``duplicate``, ``disorder``, ``moved back``."""
        self.figures: Counter[str] = Counter()
        """Numbers for the report that are no faults."""
        self.reasons: Counter[str] = Counter()
        """The reasons of the snapshots."""
        self.ended: dict[str, float] = {}
        """When the terminal state of a job first arrived, on the monotonic clock, by topic."""
        self.steps: dict[str, Counter[tuple[int, int]]] = {}
        """How often each step of a job arrived, by topic, run and number."""
        self.opened: list[float] = []
        """When it connected, on the monotonic clock."""
        self.clock = 0.0
        """The newest time in the clock's topic."""
        self.clock_at: list[tuple[float, float]] = []
        """When each event of the clock's topic arrived, and the time in it."""
        # The epoch and offset of the newest event, by topic.
        self._places: dict[str, tuple[str, int]] = {}
        # The epoch and offset of every event that arrived, by topic.
        self._received: dict[str, set[tuple[str, int]]] = {}
        self._ended_in: dict[str, str] = {}
        """The epoch that a job ended in; "": the end came from the record."""
        # The newest step, by topic and epoch.
        self._last_step: dict[tuple[str, str], tuple[int, int]] = {}

    async def open(self) -> None:
        await super().open()
        self.opened.append(time.monotonic())

    def live_at(self, when: float) -> float:
        """Return when a clock event that was published after ``when`` arrived."""
        return next(arrival for arrival, published in self.clock_at if published > when)

    async def live(
        self, web_servers: Sequence[WebServer], rng: random.Random, leaving: asyncio.Event
    ) -> None:
        """Connect and disconnect at random, mostly without a handshake, until ``leaving``."""
        await self.open()
        while not leaving.is_set():
            await asyncio.sleep(rng.uniform(0.05, 4.0))
            await (self.abort() if rng.random() < 0.8 else self.close())
            self.web_server = rng.choice(web_servers)
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0, 3.0))))
            await self.open()

    async def _receive(self, frame: dict[str, Any]) -> None:
        await super()._receive(frame)
        match frame["op"]:
            case "sync":
                if frame["mode"] == "snapshot":
                    self._note_snapshot(frame["topic"], frame)
                self._note_end(frame["topic"])
            case "provisional":
                self._note_end(frame["topic"])
                self.frames.pop()
                self.figures["provisional"] += 1
            case "events":
                for topic in frame["topics"]:
                    self._note_end(topic)
                self.frames.pop()

    def _apply(self, topic: str, batch: dict[str, Any], gaps: list[str]) -> None:
        before = len(self.bad_batches)
        super()._apply(topic, batch, gaps)
        self.faults["lost"] += len(self.bad_batches) - before
        events, self.applied[topic] = self.applied[topic], []
        self.figures["events"] += len(events)
        for event in events:
            epoch = str(self.views[topic].cursor).partition(".")[0]
            self._note_event(topic, epoch, event)

    def _note_snapshot(self, topic: str, frame: dict[str, Any]) -> None:
        epoch = (frame["cursor"] or "").partition(".")[0]
        self.reasons[frame["reason"]] += 1
        self._places[topic] = (epoch, frame["offset"])

    def _note_event(self, topic: str, epoch: str, event: dict[str, Any]) -> None:
        offset = event["offset"]
        at_epoch, at = self._places.get(topic, (epoch, 0))
        if (epoch, offset) in self._received.setdefault(topic, set()):
            self.faults["duplicate"] += 1
        elif at_epoch == epoch and offset <= at:
            self.faults["disorder"] += 1
        self._received[topic].add((epoch, offset))
        self._places[topic] = (epoch, offset)
        data = event.get("data") or {}
        if topic == CLOCK:
            self.clock = max(self.clock, data["at"])
            self.clock_at.append((time.monotonic(), data["at"]))
        elif event["type"] == "step":
            step = data["run"], data["i"]
            steps = self.steps.setdefault(topic, Counter())
            steps[step] += 1
            if self._last_step.get((topic, epoch), (0, -1)) >= step:
                self.faults["disorder"] += 1
            self._last_step[topic, epoch] = step
            if steps[step] == 2:
                # The server lost the event and its response; the worker has sent it again.
                self.figures["repeated in another epoch"] += 1

    def _note_end(self, topic: str) -> None:
        kind, _, job = topic.partition(":")
        if kind != "job":
            return
        view = self.views[topic]
        epoch = "" if job in view.overlay else (view.cursor or "").partition(".")[0]
        if (view.states.get(job) or {}).get("status") in ENDED:
            self.ended.setdefault(topic, time.monotonic())
            self._ended_in[topic] = epoch
        elif topic in self._ended_in:
            known_by = self._ended_in.pop(topic)
            if known_by == epoch:
                self.faults["moved back"] += 1
            elif known_by == "":
                self.figures["the record had the end before the log"] += 1
            else:
                self.figures["an empty broker did not know the end"] += 1
