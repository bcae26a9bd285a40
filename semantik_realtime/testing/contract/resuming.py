"""A cursor gets the events after it, or a snapshot with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.resume import Reason
from semantik_realtime.testing.contract.actors import Author
from semantik_realtime.testing.contract.fixtures import Fixtures


class Resuming(Fixtures):
    """A cursor gets the events after it, or a snapshot with the reason."""

    async def test_a_cursor_gets_exactly_the_events_after_it(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        receipts = backend.publish([author.draft(topic, state={"n": n}) for n in range(10)])
        for place, receipt in enumerate(receipts):
            snapshot = await backend.snapshot(topic, receipt.cursor, 50)
            assert snapshot.reason is None
            assert snapshot.states == {}
            assert [event.offset for event in snapshot.events] == [
                later.cursor.offset for later in receipts[place + 1 :]
            ]
            assert [event.chain for event in snapshot.events] == [
                later.cursor.chain for later in receipts[place + 1 :]
            ]
            assert snapshot.cursor == receipts[-1].cursor

    async def test_every_position_of_a_log_that_grew_one_by_one_is_a_cursor(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        receipts = [backend.publish([author.draft(topic)])[0] for _ in range(200)]
        for place in (0, 1, 62, 63, 64, 65, 127, 128, 198, 199):
            snapshot = await backend.snapshot(topic, receipts[place].cursor, 0)
            assert snapshot.reason is None
            assert [Cursor(snapshot.cursor.epoch, e.offset, e.chain) for e in snapshot.events] == [
                later.cursor for later in receipts[place + 1 :]
            ]

    async def test_the_beginning_of_a_log_is_a_cursor_too(self, backend: Any, topic: str) -> None:
        author = Author()
        [receipt] = backend.publish([author.draft(topic)])
        start = Cursor(receipt.cursor.epoch, 0, 0)
        snapshot = await backend.snapshot(topic, start, 0)
        assert snapshot.reason is None
        assert len(snapshot.events) == 1

    async def test_every_cursor_that_cannot_be_continued_gets_the_states_and_the_reason(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(retention_events=5)
        author = Author()
        receipts = backend.publish([author.draft(topic, state={"n": n}) for n in range(12)])
        top: Cursor = receipts[-1].cursor
        old, kept = receipts[3].cursor, receipts[9].cursor
        cases = [
            (None, Reason.NEW),
            (Cursor("other", 3, 0), Reason.EPOCH),
            (Cursor("", 0, 0), Reason.EPOCH),
            (Cursor(top.epoch, top.offset + 1, top.chain), Reason.AHEAD),
            (Cursor(top.epoch, 2**53, 0), Reason.AHEAD),
            (old, Reason.TRIMMED),
            (Cursor(top.epoch, kept.offset, kept.chain ^ 1), Reason.DIVERGED),
            (Cursor(top.epoch, top.offset, top.chain ^ 1), Reason.DIVERGED),
        ]
        for asked, reason in cases:
            snapshot = await backend.snapshot(topic, asked, 2)
            assert snapshot.reason is reason, asked
            assert snapshot.cursor == top
            assert json.loads(snapshot.states["1"])["state"] == {"n": 11}
            assert len(snapshot.events) == 2

    async def test_retention_keeps_exactly_the_newest_events(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(retention_events=10)
        author = Author()
        for _ in range(7):
            backend.publish([author.draft(topic) for _ in range(5)])
        events = (await backend.snapshot(topic, None, 1000)).events
        assert len(events) == 10
        assert events[-1].offset == (await backend.tops([topic]))[topic].cursor.offset

    async def test_default_retention_trims_a_long_log(self, backend: Any, topic: str) -> None:
        author = Author()
        for _ in range(13):
            backend.publish([author.draft(topic) for _ in range(100)])
        assert len((await backend.snapshot(topic, None, 1000)).events) == 1000
        assert (
            await backend.snapshot(
                topic, Cursor((await backend.tops([topic]))[topic].cursor.epoch, 0, 0), 0
            )
        ).reason is Reason.TRIMMED

    async def test_the_tops_of_thousands_of_topics_are_read_in_one_call(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        drafts = [author.draft(f"{topic}-{n}") for n in range(0, 2000, 100)]
        receipts = backend.publish(drafts)
        tops = await backend.tops([f"{topic}-{n}" for n in range(2000)])
        assert {name: top.cursor for name, top in tops.items()} == {
            draft.topic: receipt.cursor for draft, receipt in zip(drafts, receipts, strict=True)
        }

    async def test_an_unknown_topic_has_no_cursor_and_no_top(
        self, backend: Any, topic: str
    ) -> None:
        snapshot = await backend.snapshot(topic, None, 10)
        assert snapshot.cursor is None
        assert await backend.tops([topic]) == {}

    async def test_the_owner_stays_with_the_topic(self, backend: Any, topic: str) -> None:
        author = Author()
        backend.publish([author.draft(topic)])
        backend.publish([author.draft(topic, owner="7")])
        backend.publish([author.draft(topic, owner="8"), author.draft(topic)])
        assert (await backend.snapshot(topic, None, 0)).owner == "7"
        assert (await backend.tops([topic]))[topic].owner == "7"
        [event] = (await backend.snapshot(topic, None, 1)).events
        assert "owner" not in json.loads(event.json)
