"""A publisher of numbered events: what a worker or another process does."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from semantik_realtime.clock import now_text
from semantik_realtime.config import Settings
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Draft
from semantik_realtime.runtime import Runtime


def one_draft(topic: str, type: str, *, key: str, owner: str | None = None, **given: Any) -> Draft:
    """Return a draft of one event for one topic, with the present time unless ``time`` is given."""
    when = given.pop("time", None) or now_text()
    [draft] = make_drafts({topic: owner}, type, when, key, **given)
    return draft


class Publisher:
    """Publishes numbered events: ``data.i`` is 0, 1, 2 … in each topic."""

    def __init__(self, settings: Settings, rt: Runtime | None = None) -> None:
        self.rt = rt or Runtime(settings)
        self.count: Counter[str] = Counter()
        """How many events were emitted, by topic."""

    async def publish(
        self, topic: str, number: int = 1, *, batch: int = 20, owner: str = "7"
    ) -> None:
        """Append ``number`` events of a running job; return when all are in the log."""
        for start in range(0, number, batch):
            for _ in range(min(batch, number - start)):
                self.emit(topic, owner=owner)
            await self.flush()

    def emit(self, topic: str, *, owner: str | None = "7", **more: Any) -> None:
        """Emit one event, from any thread."""
        i = self.count[topic]
        self.count[topic] += 1
        key = topic.partition(":")[2]
        state = {"status": "running", "progress": {"current": i + 1, "total": None}}
        draft = {"key": key, "state": state, "data": {"i": i}, "owner": owner, **more}
        self.rt.emitter.emit(one_draft(topic, draft.pop("type", "step"), **draft))

    async def end(self, topic: str, type: str = "job_completed", *, owner: str = "7") -> None:
        """Append the terminal event of a topic's job."""
        key = topic.partition(":")[2]
        state = {"status": type.removeprefix("job_"), "progress": {"current": 1, "total": 1}}
        self.emit(topic, type=type, state=state, terminal=True, job=key, attempt=None, owner=owner)
        await self.flush()

    async def flush(self, seconds: float = 20.0) -> None:
        """Wait until every emitted event is in the log."""
        assert await asyncio.to_thread(self.rt.emitter.flush, seconds), "not flushed"

    def close(self) -> None:
        self.rt.close()
