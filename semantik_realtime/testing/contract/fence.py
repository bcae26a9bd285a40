"""Repeated drafts, outdated attempts and drafts of ended jobs are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semantik_realtime.core.event import Outcome, Receipt
from semantik_realtime.testing.contract.actors import Author, delete_job
from semantik_realtime.testing.contract.fixtures import Fixtures


class Fence(Fixtures):
    """Repeated drafts, outdated attempts and drafts of ended jobs are refused."""

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

    async def test_sending_a_batch_again_appends_the_drafts_that_were_missing(
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

    async def test_numbers_may_have_gaps(self, backend: Any, topic: str) -> None:
        author = Author()
        drafts = [author.draft(topic) for _ in range(4)]
        backend.publish([drafts[0]])
        assert backend.publish([drafts[3]])[0].outcome is Outcome.APPENDED
        assert backend.publish([drafts[1]])[0].outcome is Outcome.DUPLICATE

    async def test_a_producer_is_remembered_while_many_others_write(
        self, backend: Any, topic: str
    ) -> None:
        drafts = [Author().draft(topic) for _ in range(128)]
        assert {receipt.outcome for receipt in backend.publish(drafts)} == {Outcome.APPENDED}
        assert {receipt.outcome for receipt in backend.publish(drafts)} == {Outcome.DUPLICATE}

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

    async def test_a_draft_that_begins_an_attempt_whose_number_is_taken_is_stale(
        self, backend: Any, topic: str
    ) -> None:
        def begin(author: Author, attempt: int) -> list[Outcome]:
            """Publish an attempt's start and end in one call."""
            drafts = [
                author.draft(topic, job="j", attempt=attempt, begins=True),
                author.draft(topic),
                author.draft(topic, job="j", attempt=attempt, terminal=True),
            ]
            outcomes = [receipt.outcome for receipt in backend.publish(drafts)]
            assert outcomes.pop(1) is Outcome.APPENDED
            return outcomes

        appended, stale = [Outcome.APPENDED] * 2, [Outcome.STALE] * 2
        queued = Author().draft(topic, job="j", attempt=0)
        running = Author().draft(topic, job="j", attempt=2)
        backend.publish([queued])
        first = Author()
        assert begin(first, 1) == appended
        assert begin(Author(), 1) == stale
        backend.publish([running])
        # Also while the other attempt runs: its end is not the end of this one.
        assert begin(first, 2) == stale
        assert begin(Author(), 1) == stale
        assert begin(first, 3) == appended
        assert backend.claim(topic, "j", "token", None) == 4
        assert begin(first, 4) == stale
        [end] = backend.publish([first.draft(topic, job="j", attempt=4, terminal=True)])
        assert end.outcome is Outcome.APPENDED

    async def test_a_retry_is_recognized_after_many_other_producers_have_appended(
        self, backend: Any, topic: str
    ) -> None:
        # Each process of a fleet is one, and each task where a process runs only one.
        author = Author()
        draft = author.draft(topic, data={"n": 1})
        backend.publish([draft])
        for _ in range(3):
            receipts = backend.publish([Author().draft(topic) for _ in range(500)])
            assert {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}
        end = (await backend.tops([topic]))[topic]
        [receipt] = backend.publish([draft])
        assert receipt.outcome is Outcome.DUPLICATE
        assert (await backend.tops([topic]))[topic] == end

    async def test_the_begin_of_an_attempt_sent_twice_is_a_duplicate(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        drafts = [
            author.draft(topic, job="j", attempt=1, begins=True),
            author.draft(topic, job="j", attempt=1, terminal=True),
        ]
        backend.publish(drafts)
        outcomes = [receipt.outcome for receipt in backend.publish(drafts)]
        assert outcomes == [Outcome.DUPLICATE] * 2

    async def test_the_begin_of_an_attempt_in_a_deleted_topic_is_closed(
        self, backend: Any, topic: str
    ) -> None:
        backend.publish([Author().draft(topic, job="j", attempt=1)])
        backend.delete(topic)
        [receipt] = backend.publish([Author().draft(topic, job="j", attempt=1, begins=True)])
        assert receipt.outcome is Outcome.CLOSED

    async def test_a_refused_draft_changes_nothing(self, backend: Any, topic: str) -> None:
        author = Author()
        backend.publish([author.draft(topic, job="j", attempt=2, state={"n": 2})])
        before = await backend.snapshot(topic, None, 10)
        backend.publish([author.draft(topic, job="j", attempt=1, state={"n": 1})])
        assert await backend.snapshot(topic, None, 10) == before

    async def test_the_fence_of_one_job_does_not_apply_to_another_in_the_same_topic(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        backend.publish([author.draft(topic, job="a", attempt=1, terminal=True)])
        [receipt] = backend.publish([author.draft(topic, job="b", attempt=1)])
        assert receipt.outcome is Outcome.APPENDED

    async def test_attempts_are_claimed_one_after_the_other(self, backend: Any, topic: str) -> None:
        author = Author()
        assert backend.claim(topic, "j", "first", None) == 1
        assert backend.claim(topic, "j", "first", None) == 1
        assert backend.claim(topic, "j", "second", None) == 2
        [late] = backend.publish([author.draft(topic, job="j", attempt=1)])
        assert late.outcome is Outcome.STALE
        [end] = backend.publish([author.draft(topic, job="j", attempt=2, terminal=True)])
        assert end.outcome is Outcome.APPENDED
        assert backend.claim(topic, "j", "third", None) == 3
        [more] = backend.publish([author.draft(topic, job="j", attempt=3)])
        assert more.outcome is Outcome.APPENDED

    async def test_the_newest_jobs_without_a_state_are_remembered(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_keys=8)
        # Each job has its own author, so that a late draft is no duplicate.
        late = [delete_job(backend, Author(), topic, f"deleted{n}") for n in range(40)]
        outcomes = [backend.publish([draft])[0].outcome for draft in late[-4:]]
        assert outcomes == [Outcome.STALE] * 4
        assert backend.publish(late[:1])[0].outcome is Outcome.APPENDED

    async def test_the_newest_claims_without_an_event_are_remembered(
        self, open_backend: Callable[..., Any], topic: str
    ) -> None:
        backend = await open_backend(max_keys=8)
        author = Author()
        for n in range(40):
            assert backend.claim(topic, f"j{n}", "first", None) == 1
            backend.publish([author.draft(topic)])
        assert [backend.claim(topic, f"j{n}", "second", None) for n in (39, 38, 37, 36)] == [2] * 4
        assert backend.claim(topic, "j0", "second", None) == 1

    async def test_a_claim_in_a_deleted_topic_returns_0(self, backend: Any, topic: str) -> None:
        backend.publish([Author().draft(topic)])
        backend.delete(topic)
        assert backend.claim(topic, "j", "first", None) == 0

    async def test_a_claim_alone_does_not_make_a_topic_known(
        self, backend: Any, topic: str
    ) -> None:
        backend.claim(topic, "j", "first", None)
        assert (await backend.snapshot(topic, None, 10)).cursor is None
        assert await backend.tops([topic]) == {}
