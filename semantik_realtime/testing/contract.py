"""Every promise of a backend, as a test.

Subclass it in your own test suite and give it a fixture::

    from semantik_realtime.testing.contract import BackendContract

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def make_backend(self):
            def make(**settings):
                return MyBackend(load_settings(backend="mine", url=..., **settings))
            return make

``make_backend()`` gives a new instance over the same empty storage each time
it is called in a test (two instances are two processes of a fleet);
``shares_storage = False`` says that a backend lives in one process only. The
tests are coroutines: use pytest-asyncio in its auto mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from semantik_realtime.core.event import (
    Cursor,
    Draft,
    Event,
    Outcome,
    Receipt,
    StateChange,
    encode_body,
    link,
)
from semantik_realtime.core.resume import Reason

TIME = "2026-01-01T00:00:00.000Z"
DEADLINE_SECONDS = 10.0


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
        await until(lambda: len(self.received) >= count)

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


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def until_unknown(backend: Any, topic: str) -> None:
    """Wait until a topic has expired, with a deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await backend.snapshot(topic, None, 0)).cursor is not None:
            await asyncio.sleep(0.02)


async def until_known(backend: Any, topic: str) -> None:
    """Wait until a topic has begun, with a deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await backend.snapshot(topic, None, 0)).cursor is None:
            await asyncio.sleep(0.005)


class BackendContract:
    """What must hold for every backend, on default settings where no test says otherwise."""

    shares_storage = True
    dense_offsets = True

    @pytest.fixture
    def make_backend(self) -> Callable[..., Any]:
        raise NotImplementedError("give a fixture make_backend")

    @pytest.fixture
    async def open_backend(
        self, make_backend: Callable[..., Any]
    ) -> AsyncIterator[Callable[..., Any]]:
        opened: list[Any] = []

        async def open_one(**settings: Any) -> Any:
            backend = make_backend(**settings)
            opened.append(backend)
            await backend.open()
            return backend

        yield open_one
        for backend in opened:
            await backend.close()
            backend.close_writer()

    @pytest.fixture
    async def backend(self, open_backend: Callable[..., Any]) -> Any:
        return await open_backend()

    @pytest.fixture
    def topic(self) -> str:
        return f"job:{secrets.token_hex(6)}"

    # Appending.

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

    async def test_drafts_of_many_topics_in_one_batch_each_reach_their_own(
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

    async def test_writers_in_many_threads_lose_and_double_nothing(
        self, backend: Any, topic: str
    ) -> None:
        def write(author: Author) -> None:
            for n in range(30):
                backend.publish([author.draft(topic, data={"by": author.name, "n": n})])

        authors = [Author(f"thread{n}") for n in range(4)]
        threads = [threading.Thread(target=write, args=(author,)) for author in authors]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        events = (await backend.snapshot(topic, None, 1000)).events
        data = [json.loads(event.json)["data"] for event in events]
        for author in authors:
            assert [d["n"] for d in data if d["by"] == author.name] == [*range(30)]
        assert len(data) == 120

    # The fence.

    async def test_a_draft_sent_twice_is_appended_once_and_gets_its_first_position(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        drafts = [author.draft(topic) for _ in range(5)]
        first = backend.publish(drafts)
        backend.publish([Author().draft(topic)])
        again = backend.publish(drafts)
        assert [receipt.outcome for receipt in again] == [Outcome.DUPLICATE] * 5
        assert [receipt.cursor for receipt in again] == [receipt.cursor for receipt in first]
        assert len((await backend.snapshot(topic, None, 100)).events) == 6

    async def test_a_batch_that_was_half_appended_is_completed_by_sending_it_again(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        drafts = [author.draft(topic) for _ in range(6)]
        backend.publish(drafts[:3])
        outcomes = [receipt.outcome for receipt in backend.publish(drafts)]
        assert outcomes == [Outcome.DUPLICATE] * 3 + [Outcome.APPENDED] * 3

    async def test_a_draft_repeated_within_a_batch_is_appended_once(
        self, backend: Any, topic: str
    ) -> None:
        draft = Author().draft(topic)
        receipts = backend.publish([draft, draft])
        assert [receipt.outcome for receipt in receipts] == [
            Outcome.APPENDED,
            Outcome.DUPLICATE,
        ]

    async def test_numbers_may_have_holes(self, backend: Any, topic: str) -> None:
        author = Author()
        drafts = [author.draft(topic) for _ in range(4)]
        backend.publish([drafts[0]])
        assert backend.publish([drafts[3]])[0].outcome is Outcome.APPENDED
        assert backend.publish([drafts[1]])[0].outcome is Outcome.DUPLICATE

    async def test_an_older_attempt_is_stale(self, backend: Any, topic: str) -> None:
        author = Author()

        def publish(attempt: int | None, terminal: bool = False) -> Outcome:
            draft = author.draft(
                topic, job="j", attempt=attempt, terminal=terminal, state={"attempt": attempt}
            )
            [receipt] = backend.publish([draft])
            assert isinstance(receipt, Receipt)
            return receipt.outcome

        assert publish(0) is Outcome.APPENDED
        assert publish(1) is Outcome.APPENDED
        assert publish(0) is Outcome.STALE
        assert publish(2) is Outcome.APPENDED
        assert publish(1, terminal=True) is Outcome.STALE
        assert publish(None) is Outcome.APPENDED
        assert publish(2, terminal=True) is Outcome.APPENDED
        assert publish(2) is Outcome.CLOSED
        assert publish(2, terminal=True) is Outcome.CLOSED
        assert publish(None) is Outcome.CLOSED
        assert publish(3) is Outcome.APPENDED

    async def test_a_refused_draft_changes_nothing(self, backend: Any, topic: str) -> None:
        author = Author()
        backend.publish([author.draft(topic, job="j", attempt=2, state={"n": 2})])
        before = await backend.snapshot(topic, None, 10)
        backend.publish([author.draft(topic, job="j", attempt=1, state={"n": 1})])
        assert await backend.snapshot(topic, None, 10) == before

    async def test_the_fence_of_one_job_does_not_touch_another_in_the_same_topic(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        backend.publish([author.draft(topic, job="a", attempt=1, terminal=True)])
        [receipt] = backend.publish([author.draft(topic, job="b", attempt=1)])
        assert receipt.outcome is Outcome.APPENDED

    async def test_attempts_are_claimed_one_after_the_other(self, backend: Any, topic: str) -> None:
        author = Author()
        assert backend.claim(topic, "j", "first") == 1
        assert backend.claim(topic, "j", "first") == 1
        assert backend.claim(topic, "j", "second") == 2
        [late] = backend.publish([author.draft(topic, job="j", attempt=1)])
        assert late.outcome is Outcome.STALE
        [end] = backend.publish([author.draft(topic, job="j", attempt=2, terminal=True)])
        assert end.outcome is Outcome.APPENDED
        assert backend.claim(topic, "j", "third") == 3
        [more] = backend.publish([author.draft(topic, job="j", attempt=3)])
        assert more.outcome is Outcome.APPENDED

    async def test_a_deleted_topic_gives_no_attempts(self, backend: Any, topic: str) -> None:
        backend.publish([Author().draft(topic)])
        backend.delete(topic)
        assert backend.claim(topic, "j", "first") == 0

    async def test_a_claim_alone_makes_no_log(self, backend: Any, topic: str) -> None:
        backend.claim(topic, "j", "first")
        assert (await backend.snapshot(topic, None, 10)).cursor is None
        assert await backend.tops([topic]) == {}

    # States.

    async def test_a_snapshot_has_the_last_state_of_each_key(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        backend.publish(
            [
                author.draft(topic, key="a", state={"n": 1}),
                author.draft(topic, key="b", state={"n": 2}),
                author.draft(topic, key="a", state={"n": 3}),
                author.draft(topic, key="b"),
                author.draft(topic, key="c", state={"n": 4}),
            ]
        )
        backend.publish([author.draft(topic, key="c", state=None)])
        snapshot = await backend.snapshot(topic, None, 0)
        assert snapshot.reason is Reason.NEW
        assert list(snapshot.events) == []
        states = {key: json.loads(event) for key, event in snapshot.states.items()}
        assert {key: event["state"] for key, event in states.items()} == {
            "a": {"n": 3},
            "b": {"n": 2},
        }
        assert states["a"]["offset"] == 3 or not self.dense_offsets

    async def test_a_quiet_key_keeps_its_state_when_its_event_is_trimmed(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(retention_events=20)
        author = Author()
        backend.publish([author.draft(topic, key="quiet", state={"n": 0})])
        for n in range(1, 201):
            backend.publish([author.draft(topic, key=f"busy{n % 2}", state={"n": n})])
        snapshot = await backend.snapshot(topic, None, 1000)
        states = {key: json.loads(event)["state"] for key, event in snapshot.states.items()}
        assert states == {"quiet": {"n": 0}, "busy0": {"n": 200}, "busy1": {"n": 199}}
        assert len(snapshot.events) == 20

    async def test_a_snapshot_is_one_moment_even_while_others_write(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        stop = threading.Event()

        def write() -> None:
            for n in range(900):
                if not stop.is_set():
                    backend.publish([author.draft(topic, key=str(n % 7), state={"n": n})])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            await until_known(backend, topic)
            for _ in range(40):
                snapshot = await backend.snapshot(topic, None, 1000)
                last = {json.loads(event.json)["key"]: event.json for event in snapshot.events}
                assert snapshot.states == last
                assert snapshot.events[-1].offset == snapshot.cursor.offset
        finally:
            stop.set()
            await asyncio.to_thread(writer.join)

    async def test_a_key_may_be_any_text(self, backend: Any, topic: str) -> None:
        keys = ["a b", "ключ", "x:y/z*?{}", "'quoted\"", "%s\\"]
        author = Author()
        backend.publish([author.draft(topic, key=key, state={"k": key}) for key in keys])
        states = (await backend.snapshot(topic, None, 0)).states
        assert {key: json.loads(event)["state"]["k"] for key, event in states.items()} == {
            key: key for key in keys
        }

    async def test_when_there_are_too_many_keys_the_ended_go_and_the_rest_is_refused(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_keys=4)
        author = Author()

        def add(key: str, *, ends: bool = False) -> Outcome:
            draft = author.draft(
                topic, key=key, job=key, attempt=1, state={"k": key}, terminal=ends
            )
            outcome = backend.publish([draft])[0].outcome
            assert isinstance(outcome, Outcome)
            return outcome

        assert add("a", ends=True) is Outcome.APPENDED
        assert [add(key) for key in "bcd"] == [Outcome.APPENDED] * 3
        assert add("e") is Outcome.APPENDED
        assert set((await backend.snapshot(topic, None, 0)).states) == {*"bcde"}
        assert add("f") is Outcome.TOO_MANY_KEYS
        assert add("b") is Outcome.APPENDED

    async def test_an_event_that_is_too_big_is_refused_and_the_rest_of_its_batch_is_not(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_event_bytes=1000)
        author = Author()
        receipts = backend.publish(
            [
                author.draft(topic),
                author.draft(topic, data={"x": "y" * 1000}),
                author.draft(topic),
            ]
        )
        assert [receipt.outcome for receipt in receipts] == [
            Outcome.APPENDED,
            Outcome.TOO_BIG,
            Outcome.APPENDED,
        ]

    async def test_the_size_limit_is_exact(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_event_bytes=1000)
        author = Author()
        spare = 1000 - len(author.draft(topic, data={"x": ""}).body)
        drafts = [author.draft(topic, data={"x": "y" * size}) for size in (spare, spare + 1)]
        assert [len(draft.body) for draft in drafts] == [1000, 1001]
        assert [receipt.outcome for receipt in backend.publish(drafts)] == [
            Outcome.APPENDED,
            Outcome.TOO_BIG,
        ]

    async def test_a_large_event_within_the_limit_goes_through_whole(
        self, backend: Any, topic: str
    ) -> None:
        text = "é" * 30_000
        backend.publish([Author().draft(topic, data={"x": text})])
        [event] = (await backend.snapshot(topic, None, 1)).events
        assert json.loads(event.json)["data"]["x"] == text

    # Resuming.

    async def test_a_cursor_is_answered_by_exactly_the_events_after_it(
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

    async def test_every_place_of_a_log_that_grew_one_by_one_is_a_cursor(
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

    # Life and death of a log.

    async def test_a_log_expires_and_begins_again_in_a_new_epoch(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(retention_seconds=0.3)
        author = Author()
        [first] = backend.publish([author.draft(topic, state={"n": 1})])
        await until_unknown(backend, topic)
        [second] = backend.publish([author.draft(topic, state={"n": 2}, key="2")])
        assert second.outcome is Outcome.APPENDED
        assert second.cursor.epoch != first.cursor.epoch
        snapshot = await backend.snapshot(topic, first.cursor, 10)
        assert snapshot.reason is Reason.EPOCH
        assert set(snapshot.states) == {"2"}

    async def test_a_jobs_own_topic_lives_on_for_the_grace_after_its_end(
        self, open_backend: Callable[..., Any]
    ) -> None:
        backend = await open_backend(grace_seconds=0.4)
        name = secrets.token_hex(6)
        topic, feed = f"job:{name}", f"user:{name}"
        author = Author()
        for place in (topic, feed):
            backend.publish([author.draft(place, job=name, attempt=1, terminal=True)])
        assert (await backend.snapshot(topic, None, 1)).cursor is not None
        await until_unknown(backend, topic)
        assert (await backend.snapshot(feed, None, 1)).cursor is not None

    async def test_a_deleted_topic_is_forgotten_and_refuses_late_drafts(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        backend.publish([author.draft(topic, state={"n": 1})])
        assert backend.delete(topic) is True
        assert (await backend.snapshot(topic, None, 10)).cursor is None
        assert await backend.tops([topic]) == {}
        [late] = backend.publish([author.draft(topic, state={"n": 2})])
        assert late.outcome is Outcome.CLOSED
        assert (await backend.snapshot(topic, None, 10)).cursor is None
        assert backend.delete(topic) is False

    async def test_after_the_grace_a_deleted_topic_may_begin_anew(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(grace_seconds=0.2)
        author = Author()
        backend.publish([author.draft(topic)])
        backend.delete(topic)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while backend.publish([author.draft(topic)])[0].outcome is Outcome.CLOSED:
                await asyncio.sleep(0.05)
        assert (await backend.snapshot(topic, None, 10)).cursor is not None

    # Live.

    async def test_after_subscribing_every_append_reaches_the_sink_in_order(
        self, backend: Any, topic: str
    ) -> None:
        author, sink = Author(), Recorder()
        backend.publish([author.draft(topic)])
        await backend.subscribe(topic, sink)
        drafts = [author.draft(topic, data={"n": n}) for n in range(100)]
        receipts = [receipt for draft in drafts[:10] for receipt in backend.publish([draft])]
        receipts += backend.publish(drafts[10:])
        await until(lambda: len(sink.received) >= 100)
        assert sink.offsets == [receipt.cursor.offset for receipt in receipts]
        assert [event.chain for event in sink.received] == [r.cursor.chain for r in receipts]
        position = receipts[0].cursor.offset - 1
        for epoch, prev, events in sink.batches:
            assert epoch == receipts[0].cursor.epoch
            assert prev == position or not self.dense_offsets
            position = events[-1].offset

    async def test_what_is_live_is_byte_for_byte_what_is_stored(
        self, backend: Any, topic: str
    ) -> None:
        author, sink = Author(), Recorder()
        await backend.subscribe(topic, sink)
        backend.publish([author.draft(topic, data={"text": "a\nb\tü"}) for _ in range(3)])
        await until(lambda: len(sink.received) >= 3)
        assert sink.received == list((await backend.snapshot(topic, None, 10)).events)

    async def test_a_sink_hears_only_its_own_topic(self, backend: Any, topic: str) -> None:
        author, sink, other = Author(), Recorder(), Recorder()
        await backend.subscribe(topic, sink)
        await backend.subscribe(topic + "2", other)
        backend.publish([author.draft(topic + "2"), author.draft(topic), author.draft(topic)])
        await until(lambda: len(sink.received) == 2 and len(other.received) == 1)

    async def test_refused_and_repeated_drafts_are_not_live(self, backend: Any, topic: str) -> None:
        author, sink = Author(), Recorder()
        await backend.subscribe(topic, sink)
        draft = author.draft(topic, job="j", attempt=2)
        backend.publish([draft])
        backend.publish([draft, author.draft(topic, job="j", attempt=1)])
        backend.publish([author.draft(topic, job="j", attempt=2)])
        await until(lambda: len(sink.received) >= 2)
        assert sink.offsets == [1, 2] or not self.dense_offsets

    async def test_after_unsubscribing_the_sink_hears_nothing(
        self, backend: Any, topic: str
    ) -> None:
        author, sink, witness = Author(), Recorder(), Recorder()
        await backend.subscribe(topic, sink)
        await backend.subscribe(topic + "w", witness)
        await backend.unsubscribe(topic)
        await backend.unsubscribe(topic)
        backend.publish([author.draft(topic)])
        backend.publish([author.draft(topic + "w")])
        await until(lambda: witness.received)
        assert sink.received == []

    async def test_a_topic_can_be_subscribed_again(self, backend: Any, topic: str) -> None:
        author, sink = Author(), Recorder()
        for _ in range(3):
            await backend.subscribe(topic, Recorder())
            await backend.unsubscribe(topic)
        await backend.subscribe(topic, sink)
        backend.publish([author.draft(topic)])
        await until(lambda: sink.received)

    async def test_a_sink_hears_that_its_topic_is_gone(self, backend: Any, topic: str) -> None:
        author, sink = Author(), Recorder()
        backend.publish([author.draft(topic)])
        await backend.subscribe(topic, sink)
        backend.delete(topic)
        await until(lambda: sink.deletions)

    async def test_snapshot_and_live_together_are_the_whole_log(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                backend.publish([author.draft(topic), author.draft(topic)])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(5):
                sink = Recorder()
                await backend.subscribe(topic, sink)
                snapshot = await backend.snapshot(topic, None, 5)
                start = snapshot.cursor.offset if snapshot.cursor else 0
                await sink.heard(21)
                live = [offset for offset in sink.offsets if offset > start]
                if self.dense_offsets:
                    assert live == list(range(start + 1, start + 1 + len(live)))
                await backend.unsubscribe(topic)
        finally:
            stop.set()
            await asyncio.to_thread(writer.join)

    async def test_two_processes_see_one_log(
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
        await until(lambda: len(sink_one.received) >= 20 and len(sink_two.received) >= 20)
        assert sink_one.received == sink_two.received

    # Leases.

    async def test_no_more_than_the_limit_hold_a_lease(self, backend: Any) -> None:
        name = secrets.token_hex(6)
        granted = [backend.lease(name, f"h{n}", 3, 60.0) for n in range(5)]
        assert granted == [True, True, True, False, False]
        assert backend.lease(name, "h1", 3, 60.0) is True
        assert backend.release(name, "h1") is True
        assert backend.release(name, "h1") is False
        assert backend.lease(name, "h4", 3, 60.0) is True
        assert backend.lease(name, "h1", 3, 60.0) is False

    async def test_a_lease_that_is_not_renewed_runs_out(self, backend: Any) -> None:
        name = secrets.token_hex(6)
        assert backend.lease(name, "a", 1, 0.15)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not backend.lease(name, "b", 1, 60.0):
                await asyncio.sleep(0.02)
        assert not backend.lease(name, "a", 1, 60.0)

    async def test_leases_of_other_names_do_not_count(self, backend: Any) -> None:
        name = secrets.token_hex(6)
        assert backend.lease(name + "a", "h", 1, 60.0)
        assert backend.lease(name + "b", "h", 1, 60.0)

    # Being a guest.

    async def test_open_and_close_may_be_repeated(
        self, make_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = make_backend()
        author = Author()
        for _ in range(2):
            await backend.open()
            await backend.open()
            sink = Recorder()
            await backend.subscribe(topic, sink)
            backend.publish([author.draft(topic)])
            await sink.heard(1)
            await backend.close()
            await backend.close()
        backend.close_writer()

    async def test_writing_needs_no_open_and_survives_close_writer(
        self, make_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = make_backend()
        author = Author()
        with contextlib.closing(_WriterCloser(backend)):
            assert backend.publish([author.draft(topic)])[0].outcome is Outcome.APPENDED
            backend.close_writer()
            assert backend.publish([author.draft(topic)])[0].outcome is Outcome.APPENDED

    async def test_the_status_names_the_backend(self, backend: Any) -> None:
        status = await backend.status()
        assert status.reachable
        assert status.backend


class _WriterCloser:
    def __init__(self, backend: Any) -> None:
        self.close = backend.close_writer
