"""A log ends, by expiry or deletion, and begins again in a new epoch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest

from semantik_realtime.core.event import Cursor, Outcome
from semantik_realtime.core.resume import Reason
from semantik_realtime.core.topic import job_topic, user_topic
from semantik_realtime.testing.contract.actors import Author, Recorder
from semantik_realtime.testing.contract.fixtures import Fixtures
from semantik_realtime.testing.contract.waiting import until, until_unknown


class Lifetime(Fixtures):
    """A log ends, by expiry or deletion, and begins again in a new epoch."""

    async def test_a_log_expires_and_begins_again_in_a_new_epoch(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(retention_seconds=0.3)
        author, sink = Author(), Recorder()
        await backend.subscribe(topic, sink)
        [first] = backend.publish([author.draft(topic, state={"n": 1})])
        while True:
            await until_unknown(backend, topic)
            began_at = time.monotonic()
            [second] = backend.publish([author.draft(topic, state={"n": 2}, key="2")])
            snapshot = await backend.snapshot(topic, first.cursor, 10)
            # On a busy machine it may expire before the snapshot.
            if snapshot.cursor is not None or time.monotonic() - began_at < 0.3:
                break
        assert second.outcome is Outcome.APPENDED
        assert second.cursor.epoch != first.cursor.epoch
        assert snapshot.reason is Reason.EPOCH
        assert set(snapshot.states) == {"2"}
        await until(
            lambda: sink.batches[-1][0] == Cursor(second.cursor.epoch, 0, 0),
            "the sink to receive the new epoch from its beginning",
        )

    @pytest.mark.parametrize("prefix", ["", "import:"])
    async def test_a_jobs_own_topic_is_kept_for_the_grace_time_after_its_end(
        self, open_backend: Callable[..., Any], prefix: str
    ) -> None:
        backend = await open_backend(grace_seconds=0.4)
        name = prefix + secrets.token_hex(6)
        topic, feed = job_topic(name), user_topic(name)
        author = Author()
        ended_at = time.monotonic()
        for place in (topic, feed):
            backend.publish([author.draft(place, job=name, attempt=1, terminal=True)])
        known = (await backend.snapshot(topic, None, 1)).cursor is not None
        assert known or time.monotonic() - ended_at >= 0.4
        await until_unknown(backend, topic)
        assert (await backend.snapshot(feed, None, 1)).cursor is not None

    @pytest.mark.parametrize("prefix", ["", "import:"])
    async def test_a_job_that_has_not_ended_is_kept_beyond_the_retention(
        self, open_backend: Callable[..., Any], prefix: str
    ) -> None:
        backend = await open_backend(retention_seconds=0.1, grace_seconds=0.1)
        name = prefix + secrets.token_hex(6)
        topic, feed = job_topic(name), user_topic(name)
        author = Author()

        def publish(place: str, job: str, **given: Any) -> None:
            [receipt] = backend.publish([author.draft(place, key=job, job=job, **given)])
            assert receipt.outcome is Outcome.APPENDED

        # The queued job, its first attempt, and what others append to its topic in between.
        for changed in (
            lambda: publish(topic, name, attempt=0, state={"status": "queued"}),
            lambda: publish(topic, name, attempt=1, state={"status": "running"}),
            lambda: publish(topic, "child", attempt=1, state={"status": "running"}),
            lambda: publish(topic, "child", attempt=1, state={"n": 1}, terminal=True),
            lambda: backend.publish([author.draft(topic, key="note")]),
            lambda: backend.claim(topic, "other", "token", None),
            lambda: backend.claim(topic, name, "token", None),
        ):
            changed()
            publish(feed, name, attempt=1, state={"status": "running"})
            await until_unknown(backend, feed)
            snapshot = await backend.snapshot(topic, None, 10)
            assert name in snapshot.states
        publish(topic, name, attempt=2, state={"status": "completed"}, terminal=True)
        await until_unknown(backend, topic)

    @pytest.mark.parametrize("prefix", ["", "import:"])
    async def test_a_state_of_the_own_key_counts_whoever_sets_it(
        self, open_backend: Callable[..., Any], prefix: str
    ) -> None:
        backend = await open_backend(retention_seconds=0.1)
        name = prefix + secrets.token_hex(6)
        topic, feed = job_topic(name), user_topic(name)
        author = Author()
        for place in (topic, feed):
            backend.publish([author.draft(place, key=name, state={"n": 1})])
        await until_unknown(backend, feed)
        assert set((await backend.snapshot(topic, None, 0)).states) == {name}

    async def test_a_topic_that_is_written_to_after_its_jobs_end_has_the_usual_retention(
        self, open_backend: Callable[..., Any]
    ) -> None:
        backend = await open_backend(retention_seconds=0.3)
        name = secrets.token_hex(6)
        topic = f"job:{name}"
        author = Author()
        ends = author.draft(topic, key=name, job=name, attempt=1, state={"n": 1}, terminal=True)
        backend.publish([ends])
        backend.publish([author.draft(topic, key="child", state={"n": 1})])
        await until_unknown(backend, topic)

    async def test_a_topic_whose_job_has_no_state_has_the_usual_retention(
        self, open_backend: Callable[..., Any]
    ) -> None:
        backend = await open_backend(retention_seconds=0.3)
        name = secrets.token_hex(6)
        topic = f"job:{name}"
        author = Author()
        backend.publish([author.draft(topic, key=name, job=name)])
        await until_unknown(backend, topic)
        backend.publish([author.draft(topic, key=name, job=name, state={"n": 1})])
        backend.publish([author.draft(topic, key=name, job=name, state=None)])
        await until_unknown(backend, topic)

    async def test_a_job_that_never_ends_is_kept_for_a_time_of_its_own(
        self, open_backend: Callable[..., Any]
    ) -> None:
        backend = await open_backend(retention_seconds=0.1, open_seconds=0.5)
        name = secrets.token_hex(6)
        topic = f"job:{name}"
        author = Author()
        began_at = time.monotonic()
        backend.publish([author.draft(topic, key=name, job=name, state={"n": 1})])
        await until_unknown(backend, topic)
        assert time.monotonic() - began_at >= 0.4

    async def test_a_job_that_waits_for_a_time_is_kept_until_after_that_time(
        self, open_backend: Callable[..., Any]
    ) -> None:
        backend = await open_backend(retention_seconds=0.1, open_seconds=0.2)
        name = secrets.token_hex(6)
        topic, feed = f"job:{name}", f"user:{name}"
        author = Author()
        due_at = time.time() + 1.0
        for place in (topic, feed):
            backend.publish(
                [author.draft(place, key=name, job=name, state={"n": 1}, due_at=due_at)]
            )
        # What is appended before the time does not shorten it.
        backend.publish([author.draft(topic, key="note")])
        await until_unknown(backend, feed)
        known = (await backend.snapshot(topic, None, 0)).cursor is not None
        assert known or time.time() > due_at
        await until_unknown(backend, topic)
        # A process may estimate the time of the server.
        assert time.time() > due_at - 0.1

    async def test_a_deleted_topic_is_unknown_and_refuses_late_drafts(
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

    async def test_a_topic_deleted_before_it_began_refuses_drafts_too(
        self, backend: Any, topic: str
    ) -> None:
        assert backend.delete(topic) is False
        [late] = backend.publish([Author().draft(topic)])
        assert late.outcome is Outcome.CLOSED
        assert (await backend.snapshot(topic, None, 0)).deleted

    async def test_a_snapshot_distinguishes_a_deleted_topic_from_one_that_never_began(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        assert not (await backend.snapshot(topic, None, 10)).deleted
        backend.claim(topic, "j", "first", None)
        assert not (await backend.snapshot(topic, None, 10)).deleted
        [receipt] = backend.publish([author.draft(topic, state={"n": 1})])
        assert not (await backend.snapshot(topic, None, 10)).deleted
        backend.delete(topic)
        for asked in (None, receipt.cursor):
            snapshot = await backend.snapshot(topic, asked, 10)
            assert (snapshot.cursor, snapshot.deleted) == (None, True)
            assert not snapshot.states
            assert not snapshot.events

    async def test_after_the_grace_time_a_deleted_topic_can_begin_again(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(grace_seconds=0.2)
        author = Author()
        backend.publish([author.draft(topic)])
        backend.delete(topic)
        await until(
            lambda: backend.publish([author.draft(topic)])[0].outcome is Outcome.APPENDED,
            "the grace time to be over",
        )
        snapshot = await backend.snapshot(topic, None, 10)
        assert snapshot.cursor is not None
        assert not snapshot.deleted

    async def test_after_the_grace_time_a_deletion_is_forgotten(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(grace_seconds=0.2)
        backend.publish([Author().draft(topic)])
        backend.delete(topic)

        async def is_over() -> bool:
            return not (await backend.snapshot(topic, None, 0)).deleted

        await until(is_over, "the grace time to be over")
        assert (await backend.snapshot(topic, None, 0)).cursor is None
