"""Appends are in order and complete, and each extends the chain."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from semantik_realtime.core.event import Outcome, link
from semantik_realtime.testing.contract.actors import Author
from semantik_realtime.testing.contract.fixtures import Fixtures


class Appending(Fixtures):
    """Appends are in order and complete, and each extends the chain."""

    async def test_events_are_appended_in_the_order_given(self, backend: Any, topic: str) -> None:
        author = Author()
        receipts = backend.publish([author.draft(topic, data={"n": n}) for n in range(20)])
        assert [receipt.outcome for receipt in receipts] == [Outcome.APPENDED] * 20
        offsets = [receipt.cursor.offset for receipt in receipts]
        assert offsets == sorted(set(offsets))
        snapshot = await backend.snapshot(topic, None, 100)
        assert [json.loads(event.json)["data"]["n"] for event in snapshot.events] == [*range(20)]
        assert [event.offset for event in snapshot.events] == offsets

    async def test_an_event_is_stored_as_encoded_with_its_offset_in_front(
        self, backend: Any, topic: str
    ) -> None:
        draft = Author().draft(topic, data={"text": "naïve 🙂 \u2028 \\n"})
        [receipt] = backend.publish([draft])
        [event] = (await backend.snapshot(topic, None, 1)).events
        assert event.json == b'{"offset":%d,' % receipt.cursor.offset + draft.body[1:]

    async def test_offsets_are_dense_where_promised(self, backend: Any, topic: str) -> None:
        if not self.dense_offsets:
            return
        author = Author()
        for _ in range(5):
            backend.publish([author.draft(topic), author.draft(topic)])
        assert (await backend.tops([topic]))[topic].cursor.offset == 10

    async def test_the_chain_is_the_rolling_hash_of_the_bodies(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        drafts = [author.draft(topic, data={"n": n}) for n in range(7)]
        chain = 0
        for draft, receipt in zip(
            drafts, backend.publish(drafts[:4]) + backend.publish(drafts[4:]), strict=True
        ):
            chain = link(chain, draft.digest)
            assert receipt.cursor.chain == chain
        assert (await backend.tops([topic]))[topic].cursor.chain == chain

    async def test_each_draft_of_a_batch_is_appended_to_its_own_topic(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        topics = [f"{topic}-{n % 7}" for n in range(50)]
        receipts = backend.publish(
            [author.draft(name, data={"n": n}) for n, name in enumerate(topics)]
        )
        assert all(receipt.outcome is Outcome.APPENDED for receipt in receipts)
        for name in set(topics):
            snapshot = await backend.snapshot(name, None, 100)
            got = [json.loads(event.json)["data"]["n"] for event in snapshot.events]
            assert got == [n for n, other in enumerate(topics) if other == name]

    async def test_publishing_nothing_is_allowed(self, backend: Any) -> None:
        assert list(backend.publish([])) == []

    async def test_writers_in_many_threads_lose_and_duplicate_nothing(
        self, backend: Any, topic: str
    ) -> None:
        def write(author: Author) -> None:
            for n in range(30):
                backend.publish([author.draft(topic, data={"by": author.name, "n": n})])

        authors = [Author(f"thread{n}") for n in range(4)]
        await asyncio.gather(*[asyncio.to_thread(write, author) for author in authors])
        events = (await backend.snapshot(topic, None, 1000)).events
        data = [json.loads(event.json)["data"] for event in events]
        for author in authors:
            assert [d["n"] for d in data if d["by"] == author.name] == [*range(30)]
        assert len(data) == 120
