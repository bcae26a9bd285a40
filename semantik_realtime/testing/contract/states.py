"""A snapshot has the last state of each key, within the limits of keys and sizes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from semantik_realtime.core.event import Outcome
from semantik_realtime.core.resume import Reason
from semantik_realtime.testing.contract.actors import Author, delete_job
from semantik_realtime.testing.contract.fixtures import Fixtures, in_thread
from semantik_realtime.testing.contract.waiting import until_known


class States(Fixtures):
    """A snapshot has the last state of each key, within the limits of keys and sizes."""

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

    async def test_a_snapshot_is_atomic_while_others_write(self, backend: Any, topic: str) -> None:
        author = Author()
        stop = threading.Event()

        def write() -> None:
            for n in range(900):
                if not stop.is_set():
                    backend.publish([author.draft(topic, key=str(n % 7), state={"n": n})])

        async with in_thread(write):
            try:
                await until_known(backend, topic)
                for _ in range(40):
                    snapshot = await backend.snapshot(topic, None, 1000)
                    last = {json.loads(event.json)["key"]: event.json for event in snapshot.events}
                    assert snapshot.states == last
                    assert snapshot.events[-1].offset == snapshot.cursor.offset
            finally:
                stop.set()

    async def test_a_key_may_be_any_text(self, backend: Any, topic: str) -> None:
        keys = ["a b", "ключ", "x:y/z*?{}", "'quoted\"", "%s\\"]
        author = Author()
        backend.publish([author.draft(topic, key=key, state={"k": key}) for key in keys])
        states = (await backend.snapshot(topic, None, 0)).states
        assert {key: json.loads(event)["state"]["k"] for key, event in states.items()} == {
            key: key for key in keys
        }

    async def test_with_too_many_keys_ended_jobs_are_dropped_and_other_new_keys_refused(
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

    async def test_ended_jobs_are_dropped_also_when_there_are_jobs_without_a_state(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_keys=8)
        author = Author()
        for n in range(6):
            delete_job(backend, author, topic, f"deleted{n}")

        def add(job: str, *, ends: bool) -> Outcome:
            draft = author.draft(topic, key=job, job=job, attempt=1, state={}, terminal=ends)
            outcome = backend.publish([draft])[0].outcome
            assert isinstance(outcome, Outcome)
            return outcome

        assert {add(f"ended{n}", ends=True) for n in range(8)} == {Outcome.APPENDED}
        assert [add(f"new{n}", ends=False) for n in range(8)] == [Outcome.APPENDED] * 8
        assert add("more", ends=False) is Outcome.TOO_MANY_KEYS
        states = (await backend.snapshot(topic, None, 0)).states
        assert set(states) == {f"new{n}" for n in range(8)}

    async def test_an_event_that_is_too_big_is_refused_and_the_rest_of_its_batch_appended(
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

    async def test_a_large_event_within_the_limit_is_kept_complete(
        self, backend: Any, topic: str
    ) -> None:
        text = "é" * 30_000
        backend.publish([Author().draft(topic, data={"x": text})])
        [event] = (await backend.snapshot(topic, None, 1)).events
        assert json.loads(event.json)["data"]["x"] == text
