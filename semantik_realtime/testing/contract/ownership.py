"""A topic has one owner, and nobody gets to own the events of somebody else."""

from __future__ import annotations

import json
from typing import Any

from semantik_realtime.core.event import Cursor, Outcome
from semantik_realtime.core.resume import Reason
from semantik_realtime.testing.contract.actors import Author, Recorder
from semantik_realtime.testing.contract.fixtures import Fixtures
from semantik_realtime.testing.contract.waiting import until


class Ownership(Fixtures):
    """A topic has one owner, and nobody gets to own the events of somebody else."""

    async def test_the_first_owner_of_a_topic_is_returned_with_tops_and_snapshots(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        assert backend.claim(topic, "j", "token", None) == 1
        backend.publish([author.draft(topic, job="j", attempt=1, owner="alice")])
        backend.publish([author.draft(topic, job="j", attempt=1, owner="alice")])
        assert (await backend.tops([topic]))[topic].owner == "alice"
        assert (await backend.snapshot(topic, None, 0)).owner == "alice"
        [stale] = backend.publish([author.draft(topic, job="j", attempt=0, owner="alice")])
        assert stale.outcome is Outcome.STALE

    async def test_a_draft_of_a_foreign_owner_is_refused_and_changes_nothing(
        self, backend: Any, topic: str
    ) -> None:
        author, sink = Author(), Recorder()
        backend.publish([author.draft(topic, owner="alice", state={"n": 1})])
        before = await backend.snapshot(topic, None, 10)
        await backend.subscribe(topic, sink)
        foreign = Author()
        drafts = [foreign.draft(topic, owner="bob", state={"n": 2}) for _ in range(2)]
        for _ in range(2):
            outcomes = [receipt.outcome for receipt in backend.publish(drafts)]
            assert outcomes == [Outcome.FOREIGN_OWNER] * 2
        assert await backend.snapshot(topic, None, 10) == before
        backend.publish([author.draft(topic, owner="alice", data={"last": True})])
        await sink.wait_for_events(1)
        assert [json.loads(event.json).get("data") for event in sink.received] == [{"last": True}]

    async def test_in_a_batch_only_the_drafts_of_the_foreign_owner_are_refused(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        owners = ["alice", "bob", "alice", None, "bob", "alice"]
        drafts = [author.draft(topic, owner=owner, data={"by": owner}) for owner in owners]
        outcomes = [receipt.outcome for receipt in backend.publish(drafts)]
        kept, refused = Outcome.APPENDED, Outcome.FOREIGN_OWNER
        assert outcomes == [kept, refused, kept, kept, refused, kept]
        snapshot = await backend.snapshot(topic, None, 10)
        by = [json.loads(event.json)["data"]["by"] for event in snapshot.events]
        assert by == ["alice", "alice", None, "alice"]
        assert snapshot.owner == "alice"

    async def test_a_claim_of_a_foreign_owner_is_refused_and_makes_no_attempt_stale(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        # The first claim sets the owner, but the topic stays unknown.
        assert backend.claim(topic, "j", "first", "alice") == 1
        assert await backend.tops([topic]) == {}
        assert backend.claim(topic, "j", "foreign", "bob") == -1
        [foreign] = backend.publish([Author().draft(topic, job="j", owner="bob")])
        assert foreign.outcome is Outcome.FOREIGN_OWNER
        [own] = backend.publish([author.draft(topic, job="j", attempt=1, owner="alice")])
        assert own.outcome is Outcome.APPENDED
        assert backend.claim(topic, "j", "foreign", "bob") == -1
        [own] = backend.publish([author.draft(topic, job="j", attempt=1)])
        assert own.outcome is Outcome.APPENDED
        assert backend.claim(topic, "j", "second", "alice") == 2
        assert backend.claim(topic, "j", "third", None) == 3

    async def test_a_claim_does_not_give_a_log_with_events_an_owner(
        self, backend: Any, topic: str
    ) -> None:
        backend.publish([Author().draft(topic, job="j", attempt=1)])
        assert backend.claim(topic, "j", "first", "alice") == 2
        assert (await backend.tops([topic]))[topic].owner is None

    async def test_a_draft_without_an_owner_is_appended_and_the_owner_stays(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        backend.publish([author.draft(topic, owner="alice")])
        [receipt] = backend.publish([author.draft(topic)])
        assert receipt.outcome is Outcome.APPENDED
        snapshot = await backend.snapshot(topic, None, 10)
        assert (len(snapshot.events), snapshot.owner) == (2, "alice")

    async def test_a_log_without_an_owner_begins_again_with_its_first_owner(
        self, backend: Any, topic: str
    ) -> None:
        nobody, author, sink = Author(), Author(), Recorder()
        [old] = backend.publish([nobody.draft(topic, key="old", state={"n": 1})])
        assert (await backend.tops([topic]))[topic].owner is None
        await backend.subscribe(topic, sink)
        [first, second] = backend.publish(
            [author.draft(topic, key="new", state={"n": n}, owner="alice") for n in (2, 3)]
        )
        assert (first.outcome, second.outcome) == (Outcome.APPENDED, Outcome.APPENDED)
        snapshot = await backend.snapshot(topic, old.cursor, 10)
        assert snapshot.cursor == second.cursor
        assert snapshot.cursor.epoch != old.cursor.epoch
        assert (snapshot.owner, snapshot.reason) == ("alice", Reason.EPOCH)
        assert set(snapshot.states) == {"new"}
        assert [event.offset for event in snapshot.events] == [
            first.cursor.offset,
            second.cursor.offset,
        ]
        assert (await backend.tops([topic]))[topic].cursor == second.cursor
        await until(
            lambda: sink.batches and sink.batches[0][0] == Cursor(second.cursor.epoch, 0, 0),
            "the sink to receive the new epoch from its beginning",
        )

    async def test_a_log_begins_again_in_the_middle_of_a_batch(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        [known] = backend.publish([author.draft(topic, data={"n": 0})])
        drafts = [author.draft(topic, data={"n": n}, state={"n": n}) for n in (1, 2)]
        drafts += [author.draft(topic, data={"n": n}, owner="alice") for n in (3, 4)]
        drafts += [author.draft(topic, data={"n": 5})]
        receipts = backend.publish(drafts)
        assert [receipt.outcome for receipt in receipts] == [Outcome.APPENDED] * 5
        epochs = [receipt.cursor.epoch for receipt in receipts]
        assert epochs[:2] == [known.cursor.epoch] * 2
        assert set(epochs[2:]) == {epochs[4]} != {epochs[0]}
        snapshot = await backend.snapshot(topic, None, 10)
        assert [json.loads(event.json)["data"]["n"] for event in snapshot.events] == [3, 4, 5]
        assert (snapshot.states, snapshot.cursor) == ({}, receipts[4].cursor)
        again = backend.publish(drafts)
        assert [receipt.outcome for receipt in again] == [Outcome.DUPLICATE] * 5
        assert [receipt.cursor for receipt in again[2:]] == [it.cursor for it in receipts[2:]]
        assert await backend.snapshot(topic, None, 10) == snapshot

    async def test_the_fence_of_a_job_stays_when_its_log_begins_again(
        self, backend: Any, topic: str
    ) -> None:
        author = Author()
        assert [backend.claim(topic, "j", token, None) for token in ("first", "second")] == [1, 2]
        backend.publish([author.draft(topic, job="j", attempt=2)])
        [old] = backend.publish([author.draft(topic, job="j", attempt=1, owner="alice")])
        assert old.outcome is Outcome.STALE
        assert (await backend.tops([topic]))[topic].owner is None
        # Without an attempt it belongs to the newest one.
        [own] = backend.publish([author.draft(topic, job="j", owner="alice")])
        assert own.outcome is Outcome.APPENDED
        [late] = backend.publish([author.draft(topic, job="j", attempt=1)])
        assert late.outcome is Outcome.STALE
        assert backend.claim(topic, "j", "second", None) == 2
        assert backend.claim(topic, "j", "third", None) == 3
