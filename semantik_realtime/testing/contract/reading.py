"""A read returns what was asked for, bounded in number and bytes, and reads no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.resume import Reason
from semantik_realtime.testing.contract.actors import Author
from semantik_realtime.testing.contract.fixtures import Fixtures

TEXT = "x" * 1000


def size_of(events: Any) -> int:
    return sum(len(event.json) for event in events)


class Reading(Fixtures):
    """A read returns what was asked for, bounded in number and bytes."""

    async def test_page_by_page_a_reader_gets_the_whole_log_without_loss_or_repetition(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_read_bytes=10_000)
        author = Author()
        receipts = []
        for _ in range(10):
            drafts = [author.draft(topic, state={}, data={"x": TEXT}) for _ in range(30)]
            receipts += backend.publish(drafts)
        for limit in (1000, 7):
            after, read = 0, []
            while True:
                page = await backend.page(topic, after, limit)
                assert page.cursor == receipts[-1].cursor
                assert 1 <= len(page.events) <= limit
                assert size_of(page.events) <= 10_000
                read += page.events
                if not page.more:
                    break
                after = page.events[-1].offset
            assert [(event.offset, event.chain) for event in read] == [
                (receipt.cursor.offset, receipt.cursor.chain) for receipt in receipts
            ]

    async def test_a_page_begins_at_any_offset_and_has_the_stored_bytes(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        receipts = [backend.publish([author.draft(topic)])[0] for _ in range(200)]
        stored = (await backend.snapshot(topic, None, 1000)).events
        for place in (0, 1, 63, 64, 65, 126, 127, 198):
            page = await backend.page(topic, receipts[place].cursor.offset, 3)
            assert list(page.events) == list(stored[place + 1 : place + 4])
            assert page.more == (place + 4 < 200)

    async def test_a_page_after_the_end_of_a_log_is_empty(self, backend: Any, topic: str) -> None:
        [receipt] = backend.publish([Author().draft(topic)])
        for after in (receipt.cursor.offset, receipt.cursor.offset + 1, 2**53):
            page = await backend.page(topic, after, 10)
            assert (page.cursor, list(page.events), page.more) == (receipt.cursor, [], False)

    async def test_a_topic_that_is_unknown_or_deleted_has_no_page(
        self, backend: Any, topic: str
    ) -> None:
        assert (await backend.page(topic, 0, 10)).cursor is None
        backend.publish([Author().draft(topic)])
        backend.delete(topic)
        page = await backend.page(topic, 0, 10)
        assert (page.cursor, list(page.events), page.more) == (None, [], False)

    async def test_a_page_has_no_event_that_is_over_the_retention(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(retention_events=10)
        author = Author()
        receipts = backend.publish([author.draft(topic) for _ in range(25)])
        page = await backend.page(topic, 0, 1000)
        assert [event.offset for event in page.events] == [
            receipt.cursor.offset for receipt in receipts[15:]
        ]

    async def test_the_history_beside_a_snapshot_is_the_newest_that_fits(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_read_bytes=10_000)
        author = Author()
        for _ in range(10):
            backend.publish([author.draft(topic, state={}, data={"x": TEXT}) for _ in range(20)])
        snapshot = await backend.snapshot(topic, None, 1000)
        assert size_of(snapshot.events) <= 10_000 < size_of(snapshot.events) + 2 * len(TEXT)
        assert set(snapshot.states) == {"1"}
        newest = (await backend.snapshot(topic, None, 3)).events
        assert list(snapshot.events[-3:]) == list(newest)
        assert len(newest) == 3
        assert snapshot.events[-1].offset == snapshot.cursor.offset

    async def test_a_replay_with_too_many_bytes_becomes_a_snapshot(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_read_bytes=10_000)
        author = Author()
        receipts = backend.publish(
            [author.draft(topic, state={}, data={"x": TEXT}) for _ in range(100)]
        )
        near = await backend.snapshot(topic, receipts[-5].cursor, 2)
        assert near.reason is None
        assert [event.offset for event in near.events] == [
            receipt.cursor.offset for receipt in receipts[-4:]
        ]
        for far in (receipts[0].cursor, receipts[-20].cursor, Cursor(near.cursor.epoch, 0, 0)):
            snapshot = await backend.snapshot(topic, far, 2)
            assert snapshot.reason is Reason.TOO_FAR
            assert set(snapshot.states) == {"1"}
            assert len(snapshot.events) == 2
        rewritten = Cursor(near.cursor.epoch, 1, receipts[0].cursor.chain ^ 1)
        assert (await backend.snapshot(topic, rewritten, 0)).reason is not None

    async def test_a_single_event_is_read_whatever_its_size(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_read_bytes=2000)
        author = Author()
        receipts = backend.publish([author.draft(topic, data={"x": TEXT * 5}) for _ in range(3)])
        last = receipts[-1].cursor.offset
        assert [e.offset for e in (await backend.snapshot(topic, None, 1000)).events] == [last]
        replay = await backend.snapshot(topic, receipts[1].cursor, 0)
        assert replay.reason is None
        assert [event.offset for event in replay.events] == [last]
        page = await backend.page(topic, receipts[0].cursor.offset, 1000)
        assert [event.offset for event in page.events] == [receipts[1].cursor.offset]
        assert page.more
