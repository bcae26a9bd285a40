"""A client that keeps account of what it was told: of order, doubles, gaps and ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fleet import Native, Site
from record import CLOCK

ENDED = frozenset({"completed", "failed", "cancelled", "lost"})


class Follower(Native):
    """Counts while it follows; the events themselves are not kept."""

    def __init__(self, site: Site, *topics: str, **options: Any) -> None:
        super().__init__(site, *topics, **options)
        self.faults: Counter[str] = Counter()
        """What must not happen: ``lost``, ``double``, ``disorder``, ``moved back``."""
        self.figures: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        """Why snapshots were sent."""
        self.ended: dict[str, float] = {}
        """When the end of a job was first shown."""
        self.steps: dict[str, Counter[tuple[int, int]]] = {}
        """How often each step of a job was told, by run and number."""
        self.opened: list[float] = []
        self.clock = 0.0
        """The newest time that the clock's topic has told."""
        self.clock_at: list[tuple[float, float]] = []
        self._places: dict[str, tuple[str, int]] = {}
        self._told: dict[str, set[tuple[str, int]]] = {}
        self._ended_in: dict[str, str] = {}
        """The epoch that a job ended in; "": the record said so."""
        self._last_step: dict[tuple[str, str], tuple[int, int]] = {}

    async def open(self) -> None:
        await super().open()
        self.opened.append(time.monotonic())

    def live_at(self, when: float) -> float:
        """When it was shown a time after ``when``."""
        return next(arrival for arrival, told in self.clock_at if told > when)

    async def live(self, sites: Sequence[Site], rng: random.Random, leaving: asyncio.Event) -> None:
        """Come and go as people do, mostly without a goodbye, until ``leaving``."""
        await self.open()
        while not leaving.is_set():
            await asyncio.sleep(rng.uniform(0.05, 4.0))
            await (self.cut() if rng.random() < 0.8 else self.close())
            self.site = rng.choice(sites)
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0, 3.0))))
            await self.open()

    async def _take(self, frame: dict[str, Any]) -> None:
        await super()._take(frame)
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
        holes = len(self.holes)
        super()._apply(topic, batch, gaps)
        self.faults["lost"] += len(self.holes) - holes
        events, self.seen[topic] = self.seen[topic], []
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
        if (epoch, offset) in self._told.setdefault(topic, set()):
            self.faults["double"] += 1
        elif at_epoch == epoch and offset <= at:
            self.faults["disorder"] += 1
        self._told[topic].add((epoch, offset))
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
                # Appended, lost by the server with its answer, and appended again.
                self.figures["told again by another epoch"] += 1

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
                self.figures["the record knew of the end before the log"] += 1
            else:
                self.figures["an empty broker knew nothing of the end"] += 1
