"""Rounds of copying between two engines in memory, whose calls fail at random."""

from __future__ import annotations

import asyncio
import copy as copying
from collections.abc import AsyncIterator, Mapping, Sequence
from zlib import crc32

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from semantik_realtime.cli.migrate_copy import Copier, Side
from semantik_realtime.core.copying import (
    UNKNOWN,
    CopiedEvent,
    CopiedJob,
    CopiedProducer,
    Mark,
    TopicCopy,
    keep_sound_events,
)
from semantik_realtime.core.event import Cursor, Event, link, with_offset
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.transfer import CopiedHolder, TopicHead

TOPICS = ("job:1", "job:2")
RETAINED = 3


class Engine:
    """A `Transfer` over a dictionary. ``failure`` is that of the next `put`."""

    schemes = ("model",)
    address = "model"

    def __init__(self) -> None:
        self.copies: dict[str, TopicCopy] = {}
        self.failure = ""
        self._epochs = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def topics(self) -> AsyncIterator[Sequence[str]]:
        for topic in list(self.copies):
            # A search may find a topic twice.
            yield [topic, topic]

    async def heads(self, topics: Sequence[str]) -> Mapping[str, TopicHead]:
        found = {topic: self.copies[topic] for topic in topics if topic in self.copies}
        return {topic: TopicHead(one.place, one.place) for topic, one in found.items()}

    async def read(self, topic: str, after: int) -> TopicCopy | None:
        found = copying.deepcopy(self.copies.get(topic))
        if found is not None:
            found.events = [one for one in found.events if one.event.offset > after]
        return found

    async def put(
        self, copy: TopicCopy, place: str, *, whole: bool, run: str | None = None
    ) -> bool:
        there = self.copies.get(copy.topic)
        failure, self.failure = self.failure, ""
        if failure == "before":
            raise BackendUnavailable("nothing was stored")
        if (there.place if there else UNKNOWN) != place:
            return False
        events = [*([] if whole or there is None else there.events), *copy.events]
        stored = copying.deepcopy(copy)
        stored.events = events[-RETAINED:]
        if failure == "part":
            stored.states, stored.jobs = {}, {}
        self.copies[copy.topic] = stored
        if failure:
            raise BackendUnavailable("the answer was lost")
        return True

    async def holders(self) -> AsyncIterator[CopiedHolder]:
        for holder in ():
            yield holder

    async def put_holder(self, holder: CopiedHolder) -> None: ...

    async def read_mark(self) -> Mark | None:
        return None

    async def set_mark(
        self,
        mark: Mark | None,
        *,
        is_closing_needed: bool = True,
        instead_of: Mark | UnsetType | None = UNSET,
    ) -> bool:
        return True

    # What processes do.

    def append(self, topic: str, number: int) -> None:
        found = self.copies.get(topic)
        if found is None or found.deleted:
            self._epochs += 1
            found = self.copies[topic] = TopicCopy(topic, Cursor(f"e{self._epochs}", 0, 0))
        body = b'{"type":"step","n":%d}' % number
        offset, chain = found.cursor.offset + 1, link(found.cursor.chain, crc32(body))
        event = Event(offset, chain, with_offset(body, offset))
        found.cursor = Cursor(found.cursor.epoch, offset, chain)
        found.events = [*found.events, CopiedEvent(event, "p", number)][-RETAINED:]
        found.states = {**found.states, str(number % 2): event.json}
        found.producers = {"p": CopiedProducer(number, 0.0)}

    def claim(self, topic: str) -> None:
        found = self.copies.get(topic)
        if found is not None:
            attempt = found.jobs["1"].attempt + 1 if found.jobs else 1
            found.jobs = {"1": CopiedJob(attempt, 0, 0, "token")}

    def delete(self, topic: str) -> None:
        self.copies[topic] = TopicCopy(topic, Cursor("", 0, 0), deleted=True)


APPEND = ("append", "job:1")
ROUND = ("round", "")
changes = st.sampled_from(["append", "append", "append", "claim", "delete", "expire", "lose"])
failures = st.sampled_from(["", "", "", "before", "after", "part"])
steps = st.one_of(
    st.tuples(changes, st.sampled_from(TOPICS)),
    st.tuples(st.just("round"), failures),
    st.tuples(st.just("kill"), st.just("")),
)


@settings(max_examples=150)
@given(st.lists(steps, max_size=20))
@example([APPEND, ROUND, APPEND, ("round", "part")])
@example([APPEND, ROUND, APPEND, ("round", "after")])
@example([APPEND, APPEND, ROUND, ("delete", "job:1"), APPEND])
@example([APPEND, APPEND, ROUND, ("lose", "job:1"), APPEND])
@example([APPEND, ROUND, ("claim", "job:1")])
@example([APPEND, ("round", "part"), ("kill", ""), APPEND])
@example([("delete", "job:1"), ROUND, ("expire", "job:1"), ("delete", "job:1")])
def test_after_the_last_round_the_target_has_what_the_source_has(
    given_steps: list[tuple[str, str]],
) -> None:
    source, target = Engine(), Engine()

    async def run() -> None:
        copier = Copier(Side("FROM", source), Side("TO", target))
        for number, (what, topic) in enumerate(given_steps, start=1):
            if what == "append":
                source.append(topic, number)
            elif what == "claim":
                source.claim(topic)
            elif what == "delete":
                source.delete(topic)
            elif what in ("expire", "lose"):
                source.copies.pop(topic, None)
                if what == "expire":
                    target.copies.pop(topic, None)
            elif what == "kill":
                copier = Copier(Side("FROM", source), Side("TO", target))
            else:
                target.failure = topic
                try:
                    await copier.copy_round()
                except BackendUnavailable:
                    assert topic
                target.failure = ""
        for _ in range(3):
            try:
                await copier.copy_round(thorough=True)
            except BackendUnavailable:
                # A topic has expired in the target.
                continue
            comparison = await copier.compare()
            if comparison.is_equal:
                break
        assert (comparison.differences, comparison.changing) == (0, 0)

    asyncio.run(run())
    for topic, one in source.copies.items():
        assert target.copies[topic].digest() == one.digest()
        stored = target.copies[topic]
        assert list(stored.events)[-len(one.events) or len(stored.events) :] == list(one.events)
        assert keep_sound_events(stored) == 0
