"""A sink receives every event of its topic, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from semantik_realtime.core.event import Cursor
from semantik_realtime.testing.contract.actors import Author, Recorder
from semantik_realtime.testing.contract.fixtures import Fixtures, in_thread
from semantik_realtime.testing.contract.waiting import until


class Live(Fixtures):
    """A sink receives every event of its topic, in order."""

    async def test_after_subscribing_every_append_reaches_the_sink_in_order(
        self, backend: Any, topic: str
    ) -> None:
        author, sink = Author(), Recorder()
        [first] = backend.publish([author.draft(topic)])
        await backend.subscribe(topic, sink)
        drafts = [author.draft(topic, data={"n": n}) for n in range(100)]
        receipts = [receipt for draft in drafts[:10] for receipt in backend.publish([draft])]
        receipts += backend.publish(drafts[10:])
        await sink.wait_for_events(100)
        assert sink.offsets == [receipt.cursor.offset for receipt in receipts]
        assert [event.chain for event in sink.received] == [r.cursor.chain for r in receipts]
        position = first.cursor
        for prev, events in sink.batches:
            # The chain too: an event of a rewritten history has an offset that follows as well.
            assert prev == position
            position = Cursor(prev.epoch, events[-1].offset, events[-1].chain)

    async def test_live_events_and_stored_events_have_the_same_bytes(
        self, backend: Any, topic: str
    ) -> None:
        author, sink = Author(), Recorder()
        await backend.subscribe(topic, sink)
        backend.publish([author.draft(topic, data={"text": "a\nb\tü"}) for _ in range(3)])
        await sink.wait_for_events(3)
        assert sink.received == list((await backend.snapshot(topic, None, 10)).events)

    async def test_a_sink_receives_only_the_events_of_its_topic(
        self, backend: Any, topic: str
    ) -> None:
        author, sink, other = Author(), Recorder(), Recorder()
        await backend.subscribe(topic, sink)
        await backend.subscribe(topic + "2", other)
        backend.publish([author.draft(topic + "2"), author.draft(topic), author.draft(topic)])
        await sink.wait_for_events(2)
        await other.wait_for_events(1)
        assert (len(sink.received), len(other.received)) == (2, 1)

    async def test_refused_and_repeated_drafts_reach_no_sink(
        self, backend: Any, topic: str
    ) -> None:
        author, sink = Author(), Recorder()
        await backend.subscribe(topic, sink)
        draft = author.draft(topic, job="j", attempt=2)
        backend.publish([draft])
        backend.publish([draft, author.draft(topic, job="j", attempt=1)])
        backend.publish([author.draft(topic, job="j", attempt=2)])
        await sink.wait_for_events(2)
        assert sink.offsets == [1, 2] or not self.dense_offsets

    async def test_after_unsubscribing_the_sink_receives_nothing(
        self, backend: Any, topic: str
    ) -> None:
        author, sink, witness = Author(), Recorder(), Recorder()
        await backend.subscribe(topic, sink)
        await backend.subscribe(topic + "w", witness)
        await backend.unsubscribe(topic)
        await backend.unsubscribe(topic)
        backend.publish([author.draft(topic)])
        backend.publish([author.draft(topic + "w")])
        await witness.wait_for_events(1)
        assert sink.received == []

    async def test_a_topic_can_be_subscribed_again(self, backend: Any, topic: str) -> None:
        author, sink = Author(), Recorder()
        for _ in range(3):
            await backend.subscribe(topic, Recorder())
            await backend.unsubscribe(topic)
        await backend.subscribe(topic, sink)
        backend.publish([author.draft(topic)])
        await sink.wait_for_events(1)

    async def test_a_sink_is_called_when_its_topic_is_deleted(
        self, backend: Any, topic: str
    ) -> None:
        author, sink = Author(), Recorder()
        backend.publish([author.draft(topic)])
        await backend.subscribe(topic, sink)
        backend.delete(topic)
        await until(lambda: sink.deletions, "the call of gone()")

    async def test_a_snapshot_and_the_live_events_together_are_the_whole_log(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                backend.publish([author.draft(topic), author.draft(topic)])

        async with in_thread(write):
            try:
                for _ in range(5):
                    sink = Recorder()
                    await backend.subscribe(topic, sink)
                    snapshot = await backend.snapshot(topic, None, 5)
                    start = snapshot.cursor.offset if snapshot.cursor else 0
                    await sink.wait_for_events(21)
                    live = [offset for offset in sink.offsets if offset > start]
                    if self.dense_offsets:
                        assert live == list(range(start + 1, start + 1 + len(live)))
                    await backend.unsubscribe(topic)
            finally:
                stop.set()

    async def test_two_processes_receive_the_same_log(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        if not self.shares_storage:
            return
        one, two = await open_backend(), await open_backend()
        author, sink_one, sink_two = Author(), Recorder(), Recorder()
        await one.subscribe(topic, sink_one)
        await two.subscribe(topic, sink_two)
        other = Author()
        for _ in range(10):
            one.publish([author.draft(topic)])
            two.publish([other.draft(topic)])
        await sink_one.wait_for_events(20)
        await sink_two.wait_for_events(20)
        assert sink_one.received == sink_two.received

    async def test_after_a_break_each_sink_is_interrupted_before_it_receives_an_event(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        if not self.shares_storage or type(self).break_connection is Fixtures.break_connection:
            return
        reader, writer = await open_backend(), await open_backend()
        author = Author()
        sinks = {f"{topic}-{number}": Recorder() for number in range(20)}
        for name, sink in sinks.items():
            await reader.subscribe(name, sink)
        rounds = 0
        stop = threading.Event()

        def write() -> None:
            nonlocal rounds
            while not stop.is_set():
                writer.publish([author.draft(name) for name in sinks])
                rounds += 1

        async def wait_for_rounds(count: int) -> None:
            target = rounds + count
            await until(lambda: rounds >= target, "the writer")

        async with in_thread(write):
            try:
                for _ in range(5):
                    await wait_for_rounds(1)
                    for sink in sinks.values():
                        sink.calls.clear()
                    await self.break_connection(reader)
                    # One round may have been under way during the break.
                    last = rounds + 1
                    await until(
                        lambda: all("interrupted" in sink.calls for sink in sinks.values()),
                        "the call of interrupted() on every sink",
                    )
                    for sink in sinks.values():
                        early = sink.calls[: sink.calls.index("interrupted")]
                        for call in early:
                            assert isinstance(call, list)
                            assert call[-1].offset <= last, "an event of the new connection"
            finally:
                stop.set()
