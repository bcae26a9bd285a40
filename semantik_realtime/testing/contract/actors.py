"""Who takes part in a test: one writes, one listens."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from semantik_realtime.core.event import Draft, Event, StateChange, encode_body
from semantik_realtime.testing.contract.waiting import until

TIME = "2026-01-01T00:00:00.000Z"


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int, list[Event]]] = []
        self.interruptions = 0
        self.deletions = 0

    def events(self, topic: str, epoch: str, prev: int, events: Sequence[Event]) -> None:
        self.batches.append((epoch, prev, list(events)))

    def interrupted(self, topic: str) -> None:
        self.interruptions += 1

    def gone(self, topic: str) -> None:
        self.deletions += 1

    async def heard(self, count: int) -> None:
        """Wait until so many events came."""
        await until(lambda: len(self.received) >= count, f"{count} events at the sink")

    @property
    def received(self) -> list[Event]:
        return [event for _, _, events in self.batches for event in events]

    @property
    def offsets(self) -> list[int]:
        return [event.offset for event in self.received]


class Author:
    """A producer: makes drafts with growing numbers."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or secrets.token_hex(6)
        self.numbers: dict[str, int] = {}

    def draft(
        self,
        topic: str,
        type: str = "note",
        *,
        key: str = "1",
        state: Any = ...,
        data: dict[str, Any] | None = None,
        terminal: bool = False,
        job: str | None = None,
        attempt: int | None = None,
        owner: str | None = None,
        max_bytes: int = 10**9,
    ) -> Draft:
        number = self.numbers[topic] = self.numbers.get(topic, 0) + 1
        given = {} if state is ... else {"state": state}
        change = (
            StateChange.KEEP
            if state is ...
            else (StateChange.DROP if state is None else StateChange.SET)
        )
        return Draft(
            topic=topic,
            type=type,
            key=key,
            body=encode_body(
                type, TIME, key, data=data, terminal=terminal, max_bytes=max_bytes, **given
            ),
            change=change,
            terminal=terminal,
            producer=self.name,
            number=number,
            job=job,
            attempt=attempt,
            owner=owner,
        )


def delete_job(backend: Any, author: Author, topic: str, job: str) -> Draft:
    """Let ``job`` run and be deleted, as a feed sees it; gives a draft of it that comes late."""
    running, late = (
        author.draft(topic, key=job, job=job, attempt=1, state={"job": job}) for _ in range(2)
    )
    backend.publish([running])
    attempt = backend.claim(topic, job, "deletion")
    deletion = Author().draft(topic, key=job, job=job, attempt=attempt, state=None, terminal=True)
    backend.publish([deletion])
    return late
