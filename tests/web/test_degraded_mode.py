"""The degraded mode over a backend that fails on demand, with a hub of the test's own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from failing_backend import FailingBackend
from fake_hub import FakeHub
from waiting import until

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.core.drafts import make_drafts
from semantik_realtime.core.event import Draft
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.web import outage as outage_module
from semantik_realtime.web.outage import DegradedMode


class Setup:
    """A degraded mode with everything around it."""

    def __init__(self) -> None:
        self.backend = FailingBackend()
        self.guarded = GuardedBackend(self.backend, 5)
        self.steps: list[str] = []
        """The steps of the returns, in order."""
        self.hub = FakeHub(self.guarded, self.steps)
        self.can_flush = True
        self.record: dict[str, dict[str, Any]] = {}
        """The host's record: by topic the states of its keys."""
        self.outage = DegradedMode(
            self.guarded,
            recall=self._recall,
            flush=self._flush,
            recall_seconds=3600,
            tops_seconds=3600,
            max_delayed_bytes=2**20,
        )

    async def _recall(self, topic: str) -> dict[str, bytes] | None:
        states = self.record.get(topic)
        return states and {key: json.dumps(state).encode() for key, state in states.items()}

    async def _flush(self) -> bool:
        self.steps.append("flush" if self.can_flush else "flush failed")
        return self.can_flush

    async def begin(self) -> None:
        """Let reads and writes fail, and wait until the degraded mode has begun."""
        self.backend.fail()
        with pytest.raises(BackendUnavailable):
            await self.guarded.tops(["job:1"])
        assert self.outage.since is not None
        # Let the first reading of the record end, which would show delayed drafts too.
        for _ in range(10):
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Let the backend answer, and wait until it is restored."""
        self.backend.recover()
        await until(lambda: self.outage.since is None)


@pytest.fixture
async def setup(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    monkeypatch.setattr(outage_module, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(outage_module, "PROBE_SECONDS", 0.005)
    made = Setup()
    await made.guarded.open()
    made.outage.start(made.hub)
    yield made
    made.backend.write_gate.set()
    made.outage.stop()
    for task in made.hub.tasks:
        task.cancel()
    await asyncio.wait(made.hub.tasks)


def one(topic: str, key: str = "1", **state: object) -> Draft:
    [draft] = make_drafts({topic: None}, "step", "", key, state={"attempt": 1, **state})
    return draft


# The beginning.


async def test_the_first_failed_read_begins_it_and_each_connection_is_notified_once(
    setup: Setup,
) -> None:
    viewers = [setup.hub.add("job:1"), setup.hub.add()]
    setup.backend.fails_reads = True
    with pytest.raises(BackendUnavailable):
        await setup.guarded.snapshot("job:1", None, 0)
    # Without waiting for a probe.
    since = setup.outage.since
    assert since is not None
    assert [viewer.notices for viewer in viewers] == [[("degraded", since)]] * 2
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            await setup.guarded.tops(["job:1"])
        setup.outage.begin("again")
        await asyncio.sleep(0.02)
    assert setup.outage.since == since
    assert [viewer.notices for viewer in viewers] == [[("degraded", since)]] * 2


async def test_the_first_failed_write_of_another_thread_begins_it_on_the_loop(
    setup: Setup,
) -> None:
    viewer = setup.hub.add("job:1")
    setup.backend.fails_writes = True
    with pytest.raises(BackendUnavailable):
        await asyncio.to_thread(setup.guarded.publish, [one("job:1")])
    await until(lambda: viewer.notices)
    await asyncio.sleep(0.05)
    # Reads work, so a look at them alone must not end it.
    assert viewer.notices == [("degraded", setup.outage.since)]
    assert viewer.threads == {threading.get_ident()}


async def test_a_failed_probe_begins_it_where_nobody_reads_or_writes(setup: Setup) -> None:
    viewer = setup.hub.add()
    setup.backend.fails_reads = True
    await until(lambda: setup.outage.since)
    assert viewer.ops() == ["degraded"]


# Provisional states.


async def test_delayed_drafts_are_shown_to_connections_that_may_see_the_topic_and_to_no_others(
    setup: Setup,
) -> None:
    owner, other = setup.hub.add("job:1", "job:2"), setup.hub.add("job:3")
    await setup.begin()
    await asyncio.to_thread(setup.outage.add_delayed, [one("job:1", n=1), one("job:1", n=2)])
    await until(lambda: owner.shown("memory"))
    assert owner.shown("memory") == [("job:1", {"1": {"attempt": 1, "n": 2}})]
    assert owner.threads == {threading.get_ident()}
    late = setup.hub.add("job:1")
    setup.outage.show("job:1", late)
    await until(lambda: late.shown("memory"))
    assert late.shown("memory") == owner.shown("memory")
    assert other.ops() == ["degraded"]
    # All notices of one outage name it alike.
    assert len({notice[2] for v in (owner, late) for notice in v.notices if len(notice) > 2}) == 1


async def test_delayed_drafts_are_not_shown_to_watchers_of_another_owners_job(setup: Setup) -> None:
    alice, unknown = setup.hub.add("job:1"), setup.hub.add("job:1")
    alice.allowed["job:1"] = "alice"
    await setup.begin()
    draft = one("job:1", n=1)
    draft.owner = "bob"
    await asyncio.to_thread(setup.outage.add_delayed, [draft])
    await until(lambda: unknown.shown("memory"))
    assert alice.ops() == ["degraded"]


async def test_the_hosts_record_is_shown_to_connections_that_may_see_the_topic(
    setup: Setup,
) -> None:
    setup.record = {"job:1": {"1": {"n": 1}}, "job:2": {"2": {"n": 2}}}
    owner, other = setup.hub.add("job:1"), setup.hub.add("job:2")
    await setup.begin()
    await until(lambda: owner.shown("recall") and other.shown("recall"))
    assert owner.shown("recall") == [("job:1", {"1": {"n": 1}})]
    assert other.shown("recall") == [("job:2", {"2": {"n": 2}})]


async def test_outside_an_outage_nothing_provisional_is_shown(setup: Setup) -> None:
    setup.record = {"job:1": {"1": {"n": 1}}}
    viewer = setup.hub.add("job:1")
    setup.outage.add_delayed([one("job:1")])
    setup.outage.show("job:1", viewer)
    await asyncio.sleep(0.02)
    assert viewer.notices == []


@pytest.mark.parametrize(
    ("recalled", "delayed", "expected"),
    [
        ({"attempt": 2}, {"attempt": 1, "status": "completed"}, "recalled"),
        ({"attempt": 1, "status": "completed"}, {"attempt": 1, "status": "running"}, "recalled"),
        ({"attempt": 1, "progress": {"current": 5}}, {"progress": {"current": 4}}, "recalled"),
        ({"attempt": 1, "progress": {"current": 4}}, {"progress": {"current": 5}}, "delayed"),
        ({"attempt": 1, "status": "running"}, {"status": "cancelled"}, "delayed"),
        ({"attempt": 1, "message": "old"}, {"message": "new"}, "delayed"),
    ],
)
async def test_a_recalled_state_that_is_ahead_is_not_moved_back_by_a_delayed_one(
    setup: Setup, recalled: dict[str, Any], delayed: dict[str, Any], expected: str
) -> None:
    assert await setup.outage.states("job:1") is None
    await setup.begin()
    setup.outage.add_delayed([one("job:1", **delayed), one("job:1", "only delayed")])
    setup.record = {"job:1": {"1": recalled, "only recalled": {}}}
    states = await setup.outage.states("job:1")
    assert states is not None
    assert {key: json.loads(state) for key, state in states.items()} == {
        "1": recalled if expected == "recalled" else {"attempt": 1, **delayed},
        "only recalled": {},
        "only delayed": {"attempt": 1},
    }


# The return.


async def test_connections_are_restored_only_after_the_flush_and_every_resync(
    setup: Setup,
) -> None:
    viewer = setup.hub.add("job:1")
    setup.can_flush = False
    setup.hub.resynced.clear()
    await setup.begin()
    setup.outage.add_delayed([one("job:1")])
    setup.backend.recover()
    await until(lambda: setup.steps.count("flush failed") >= 3)
    # The drafts still wait, so no topic is read again yet.
    assert set(setup.steps) == {"flush failed"}
    setup.steps.clear()
    setup.can_flush = True
    await until(lambda: "resync" in setup.steps)
    await asyncio.sleep(0.05)
    assert "restored" not in viewer.ops()
    assert setup.outage.since is not None
    setup.hub.resynced.set()
    await until(lambda: "restored" in viewer.ops())
    assert setup.steps == ["flush", "resync", "resynced"]
    assert viewer.ops().count("restored") == 1
    assert setup.outage.since is None
    # What was delayed is in the log now.
    assert await setup.outage.states("job:1") is None


@pytest.mark.parametrize("failure", ["call", "status"])
async def test_a_failure_during_the_resyncs_keeps_it_degraded_until_the_next_probe(
    setup: Setup, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = setup.hub.add("job:1")
    setup.hub.resynced.clear()
    await setup.begin()
    setup.backend.recover()
    await until(lambda: "resync" in setup.steps)
    # From here on the prober wakes up only when the resyncs end.
    monkeypatch.setattr(outage_module, "PROBE_SECONDS", 0.3)
    await asyncio.sleep(0.05)
    if failure == "call":
        setup.backend.fails_once_for = "job:fails"
        with pytest.raises(BackendUnavailable):
            await setup.guarded.tops(["job:fails"])
    else:
        # A status that is not reachable opens no breaker.
        setup.outage.begin("not reachable")
    setup.hub.resynced.set()
    await until(lambda: "restored" in viewer.ops())
    assert setup.steps.count("flush") == 2
    assert setup.steps.count("resync") == 2
    assert viewer.ops() == ["degraded", "restored"]


async def test_a_publish_that_hangs_during_the_resyncs_keeps_it_degraded(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semantik_realtime.backends.guard.HANG_SECONDS", 0.01)
    viewer = setup.hub.add("job:1")
    setup.hub.resynced.clear()
    await setup.begin()
    setup.backend.recover()
    await until(lambda: "resync" in setup.steps)
    setup.backend.write_gate.clear()
    publishing = asyncio.create_task(asyncio.to_thread(setup.guarded.publish, [one("job:1")]))
    await until(lambda: setup.guarded.fails_writes)
    setup.hub.resynced.set()
    await until(lambda: setup.steps.count("resynced") >= 3)
    assert viewer.ops() == ["degraded"]
    setup.backend.write_gate.set()
    await publishing
    await until(lambda: "restored" in viewer.ops())


async def test_the_prober_does_not_wait_for_resyncs_that_wait_for_the_backend(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage_module, "RESYNC_SECONDS", 3600)
    setup.hub.resynced.clear()
    await setup.begin()
    setup.backend.recover()
    await until(lambda: "resync" in setup.steps)
    setup.backend.fails_once_for = "job:fails"
    with pytest.raises(BackendUnavailable):
        await setup.guarded.tops(["job:fails"])
    await until(lambda: setup.steps.count("resync") == 2)


async def test_resyncs_that_take_too_long_are_probed_on_and_not_restored(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage_module, "RESYNC_SECONDS", 0.01)
    viewer = setup.hub.add()
    setup.hub.resynced.clear()
    await setup.begin()
    setup.backend.recover()
    await until(lambda: setup.steps.count("resync") >= 3)
    assert viewer.ops() == ["degraded"]
    setup.hub.resynced.set()
    await until(lambda: "restored" in viewer.ops())


async def test_callers_that_wait_for_the_backend_continue_when_it_answers(setup: Setup) -> None:
    await asyncio.wait_for(setup.outage.wait_for_backend(0), 1)
    setup.hub.resynced.clear()
    await setup.begin()
    waiting = asyncio.create_task(setup.outage.wait_for_backend(0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    setup.backend.recover()
    # Before the resyncs have ended: they wait like this themselves.
    await asyncio.wait_for(waiting, 5)
    assert setup.outage.since is not None


async def test_the_seconds_of_all_outages_add_up_and_the_present_one_counts(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(outage_module, "time", clock)
    assert setup.outage.seconds == 0
    await setup.begin()
    now += 2
    assert setup.outage.seconds == 2
    now += 1
    await setup.end()
    now += 100
    assert setup.outage.seconds == 3
    await setup.begin()
    now += 4
    assert setup.outage.seconds == 7
    await setup.end()
    assert setup.outage.seconds == 7


async def test_each_outage_notifies_again_under_an_epoch_of_its_own(setup: Setup) -> None:
    viewer = setup.hub.add("job:1")
    for number in range(2):
        await setup.begin()
        setup.outage.add_delayed([one("job:1", n=number)])
        await until(lambda number=number: len(viewer.shown("memory")) == number + 1)
        await setup.end()
    assert viewer.ops() == ["degraded", "provisional", "restored"] * 2
    assert len({notice[2] for notice in viewer.notices if notice[0] == "provisional"}) == 2


# The end of the process.


async def test_stop_ends_the_outage_and_everything_that_it_shows(setup: Setup) -> None:
    setup.record = {"job:1": {"1": {"n": 1}}}
    viewer = setup.hub.add("job:1")
    await setup.begin()
    await until(lambda: viewer.shown("recall"))
    assert setup.hub.running("recall")
    setup.outage.stop()
    await until(lambda: not setup.hub.running("recall"))
    viewer.notices.clear()
    await asyncio.to_thread(setup.outage.add_delayed, [one("job:1")])
    setup.outage.show("job:1", viewer)
    setup.outage.begin("after the end")
    with pytest.raises(BackendUnavailable):
        await asyncio.to_thread(setup.guarded.publish, [one("job:1")])
    await asyncio.sleep(0.02)
    assert viewer.notices == []
    assert not setup.hub.running("show")
    # On the next loop nothing of the outage is known.
    setup.outage.start(setup.hub)
    assert setup.outage.since is None


async def test_after_stop_a_failure_begins_no_outage(setup: Setup) -> None:
    viewer = setup.hub.add("job:1")
    setup.outage.stop()
    setup.backend.fail()
    with pytest.raises(BackendUnavailable):
        await setup.guarded.tops(["job:1"])
    with pytest.raises(BackendUnavailable):
        await asyncio.to_thread(setup.guarded.publish, [one("job:1")])
    await asyncio.sleep(0.02)
    assert viewer.notices == []
    assert setup.outage.since is None
