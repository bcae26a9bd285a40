"""A producer of drafts and a sink that records, for tests of a backend."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from semantik_realtime.core.event import Cursor, Draft, Event, StateChange, encode_body
from semantik_realtime.testing.contract.waiting import until

TIME = "2026-01-01T00:00:00.000Z"


class Recorder:
    """A sink that records its calls."""

    def __init__(self) -> None:
        self.calls: list[str | list[Event]] = []
        """Every call in order: the events, or the name of the method."""
        self.batches: list[tuple[Cursor, list[Event]]] = []
        """The position before the first event, and the events of each call."""
        self.interruptions = 0
        """Calls of `interrupted`."""
        self.deletions = 0
        """Calls of `gone`."""

    def events(self, topic: str, prev: Cursor, events: Sequence[Event]) -> None:
        self.batches.append((prev, list(events)))
        self.calls.append(list(events))

    def interrupted(self, topic: str) -> None:
        self.interruptions += 1
        self.calls.append("interrupted")

    def gone(self, topic: str) -> None:
        self.deletions += 1
        self.calls.append("gone")

    async def wait_for_events(self, count: int) -> None:
        """Wait until ``count`` events were received; after 10 s the test fails."""
        await until(lambda: len(self.received) >= count, f"{count} events at the sink")

    @property
    def received(self) -> list[Event]:
        """All events, in the order of their arrival."""
        return [event for _, events in self.batches for event in events]

    @property
    def offsets(self) -> list[int]:
        """The offsets of all events, in the order of their arrival."""
        return [event.offset for event in self.received]


class Author:
    """A producer: makes drafts with growing numbers, as the emitter of one process does."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or secrets.token_hex(6)
        self.numbers: dict[str, int] = {}
        """The number of the last draft for each topic."""

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
        begins: bool = False,
        owner: str | None = None,
        due_at: float | None = None,
        max_bytes: int = 10**9,
    ) -> Draft:
        """Return a draft with the next number of its topic. Without ``state`` it has none."""
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
            begins=begins,
            owner=owner,
            due_at=due_at,
        )


def delete_job(backend: Any, author: Author, topic: str, job: str) -> Draft:
    """Publish that ``job`` runs and is deleted, as in a user's feed. Return a late draft of it."""
    running, late = (
        author.draft(topic, key=job, job=job, attempt=1, state={"job": job}) for _ in range(2)
    )
    backend.publish([running])
    attempt = backend.claim(topic, job, "deletion", None)
    deletion = Author().draft(topic, key=job, job=job, attempt=attempt, state=None, terminal=True)
    backend.publish([deletion])
    return late
