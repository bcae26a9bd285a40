"""A web server that ends the jobs of processes that are gone, and of those that never begin."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest
from clients import NativeClient
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.clock import time_text
from semantik_realtime.config import Settings
from semantik_realtime.core.leases import HeldJob
from semantik_realtime.core.lifecycle import END_TYPES, STATUS_OF_TYPE
from semantik_realtime.hookspecs import hookimpl

SETTINGS = {"lease_seconds": 2.0, "queued_seconds": 3600.0}
RECORD = HeldJob("app.index", "7", queued_at="2026-01-01T00:00:00.000Z").encode()
UNCHANGED_SECONDS = 2.0
"""Longer than a server needs to find a lease over."""


class Outcomes:
    """The host's knowledge of how its jobs ended."""

    def __init__(self, answer: Mapping[str, Any] | None = None, *, hangs: bool = False) -> None:
        self.answer, self.hangs = answer, hangs
        self.asked: list[str] = []

    @hookimpl
    async def outcome(self, job: str) -> Mapping[str, Any] | None:
        self.asked.append(job)
        if self.hangs:
            await asyncio.sleep(3600)
        return self.answer


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    return Outcomes()


@pytest.fixture
async def web_server(settings: Settings, outcomes: Outcomes) -> AsyncIterator[InProcessServer]:
    async with serve_realtime(settings, plugins=[outcomes]) as made:
        yield made


def begin(publisher: Publisher, job: str, attempt: int, worker: str, **more: Any) -> None:
    state = {"status": "running", "attempt": attempt, "worker": worker, **more}
    publisher.emit(f"job:{job}", type="job_started", state=state, job=job, attempt=attempt)


async def hold(publisher: Publisher, worker: str, *jobs: str, record: bytes = RECORD) -> None:
    """Hold jobs for a process that dies at once."""
    held = dict.fromkeys(jobs, record)
    await asyncio.to_thread(publisher.rt.backend.hold, worker, held, [], 0.01)


async def states(web_server: InProcessServer, topic: str) -> dict[str, Any]:
    snapshot = await web_server.rt.web.hub.read(topic)
    return {key: msgspec.json.decode(event) for key, event in snapshot.states.items()}


async def wait_for(web_server: InProcessServer, job: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 15
    while True:
        found = (await states(web_server, f"job:{job}")).get(job, {"state": {}})
        if found["state"].get("status") == status:
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def check_unchanged(web_server: InProcessServer, job: str, status: str) -> None:
    overdue = web_server.rt.web.lost.overdue
    await until(lambda: web_server.rt.web.lost.overdue > overdue, 15, "a look")
    await asyncio.sleep(UNCHANGED_SECONDS)
    await wait_for(web_server, job, status)


async def test_a_job_whose_process_died_before_its_first_event_is_lost(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    publisher.emit(
        "job:1", type="job_queued", state={"status": "queued", "attempt": 0}, job="1", attempt=0
    )
    await publisher.flush()
    await hold(publisher, "w", "1", "2")
    queued, unknown = (
        await wait_for(web_server, "1", "lost"),
        await wait_for(web_server, "2", "lost"),
    )
    assert queued["state"]["attempt"] == unknown["state"]["attempt"] == 0
    assert unknown["state"]["name"] == "app.index"
    assert set(await states(web_server, "user:7")) == {"1", "2"}
    # The message comes again, and a newer attempt begins.
    begin(publisher, "1", 1, "v")
    await publisher.flush()
    await wait_for(web_server, "1", "running")


async def test_an_attempt_that_was_only_counted_is_lost_with_its_process(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    begin(publisher, "1", 1, "w")
    await publisher.flush()
    backend = publisher.rt.backend
    assert await asyncio.to_thread(backend.claim, "job:1", "1", "token", "7") == 2
    await hold(publisher, "w", "1")
    await wait_for(web_server, "1", "lost")


async def test_a_job_that_another_process_runs_or_that_has_ended_stays_as_it_is(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    begin(publisher, "1", 2, "another")
    begin(publisher, "2", 1, "w")
    await publisher.flush()
    failed = {"status": "failed", "attempt": 1, "worker": "w"}
    publisher.emit("job:2", type="job_failed", state=failed, job="2", attempt=1, terminal=True)
    await publisher.flush()
    await hold(publisher, "w", "1", "2")
    await check_unchanged(web_server, "1", "running")
    await wait_for(web_server, "2", "failed")
    assert web_server.rt.web.ends.counts["lost"] == 0
    # Nobody gets the process again.
    assert list(await asyncio.to_thread(publisher.rt.backend.overdue, 1)) == []


async def test_an_end_that_the_feed_did_not_get_is_sent_to_it_again_and_only_once(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    begin(publisher, "1", 2, "w")
    running = {"status": "running", "attempt": 2, "worker": "w"}
    publisher.emit("user:7", type="job_started", key="1", state=running, job="1", attempt=2)
    done = {"status": "completed", "attempt": 2, "worker": "w"}
    publisher.emit("job:1", type="job_completed", state=done, job="1", attempt=2, terminal=True)
    await publisher.flush()
    for worker in ("w", "v"):
        overdue = web_server.rt.web.lost.overdue
        await hold(publisher, worker, "1")
        await until(lambda: web_server.rt.web.lost.overdue > overdue, 15, "a look")  # noqa: B023
        await asyncio.to_thread(web_server.rt.emitter.flush, 5)
    found = await states(web_server, "user:7")
    assert found["1"]["state"] == done
    assert (found["1"]["type"], found["1"]["offset"]) == ("job_completed", 2)
    top = await web_server.rt.web.hub.read("user:7")
    assert top.cursor is not None
    assert top.cursor.offset == 2


WHOLE = HeldJob(owner="7", expected=0, workflow="1", is_whole=True).encode()


def show(publisher: Publisher, key: str, type: str, **state: Any) -> None:
    """Send a state of the workflow 1, or of a member of it."""
    state = {"status": STATUS_OF_TYPE[type], "attempt": 1, **state}
    publisher.emit(
        *("job:1",), type=type, key=key, state=state, job=key, attempt=1, terminal=type in END_TYPES
    )


def show_members(publisher: Publisher, *types: str) -> None:
    show(publisher, "1", "job_started", workflow={"total": len(types), "ends": "all"})
    for number, type in enumerate(types):
        show(publisher, f"m{number}", type, member={"n": number})


async def test_a_workflow_ends_whose_members_have_when_the_process_that_followed_it_died(
    web_server: InProcessServer, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    show_members(publisher, "job_completed", "job_completed")
    await publisher.flush()
    await hold(publisher, "w", "~1", record=WHOLE)
    await hold(publisher, "v", "~1", record=WHOLE)
    event = await wait_for(web_server, "1", "completed")
    assert event["type"] == "job_completed"
    assert set(await states(web_server, "job:1")) == {"1", "m0", "m1"}
    assert (await states(web_server, "user:7"))["1"]["state"]["status"] == "completed"
    # No job was lost.
    assert sum(web_server.rt.web.ends.counts.values()) == 0
    await until(lambda: web_server.rt.web.lost.overdue == 2, 15, "both are settled")
    assert list(await asyncio.to_thread(publisher.rt.backend.overdue, 1)) == []
    assert "worker process gone" not in caplog.text


async def test_a_workflow_is_looked_at_again_while_a_member_of_it_runs(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    show_members(publisher, "job_completed", "job_started")
    await publisher.flush()
    await hold(publisher, "w", "~1", record=WHOLE)
    await asyncio.sleep(UNCHANGED_SECONDS)
    await wait_for(web_server, "1", "running")
    # The process outlives the one that would have noticed its end.
    show(publisher, "m1", "job_failed", member={"n": 1}, error={"type": "E", "message": ""})
    await publisher.flush()
    event = await wait_for(web_server, "1", "failed")
    assert event["state"]["error"]["key"] == "m1"


async def test_a_workflow_that_waits_is_left_to_the_worker_that_receives_its_members(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    show_members(publisher, "job_completed", "job_queued")
    await publisher.flush()
    await hold(publisher, "w", "~1", record=WHOLE)
    await check_unchanged(web_server, "1", "running")
    assert list(await asyncio.to_thread(publisher.rt.backend.overdue, 1)) == []


async def test_the_host_is_asked_how_a_job_ended(
    web_server: InProcessServer, publisher: Publisher, outcomes: Outcomes
) -> None:
    outcomes.answer = {"status": "completed", "ended_at": "2026-02-01T00:00:00.000Z"}
    begin(publisher, "1", 1, "w", progress={"current": 3, "total": 3})
    await publisher.flush()
    await hold(publisher, "w", "1")
    event = await wait_for(web_server, "1", "completed")
    assert event["type"] == "job_completed"
    assert event["state"]["ended_at"] == "2026-02-01T00:00:00.000Z"
    assert event["state"]["progress"] == {"current": 3, "total": 3}
    assert outcomes.asked == ["1"]
    await until(lambda: web_server.rt.web.ends.counts["completed"] == 1)


async def test_a_host_that_does_not_answer_delays_no_job(
    web_server: InProcessServer,
    publisher: Publisher,
    outcomes: Outcomes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes.hangs = True
    jobs = [str(number) for number in range(40)]
    for job in jobs:
        begin(publisher, job, 1, "w")
    await publisher.flush()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        await hold(publisher, "w", *jobs)
        for job in jobs:
            await wait_for(web_server, job, "lost")
    # One deadline of 2 s for all, not one for each.
    assert time.monotonic() - began < 12
    assert len(outcomes.asked) <= 8
    assert sum("outcome not known" in line for line in caplog.messages) == 1


async def test_nobody_is_called_lost_during_an_outage_nor_for_one_lease_after_it(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(publisher, "1", 1, "w")
    await publisher.flush()
    lost = web_server.rt.web.lost
    await until(lambda: lost._look is not None and lost._look.done(), 15, "the first look")
    monkeypatch.setattr(GuardedBackend, "is_away", True)
    await hold(publisher, "w", "1")
    await asyncio.sleep(UNCHANGED_SECONDS)
    await wait_for(web_server, "1", "running")
    monkeypatch.undo()
    returned = time.monotonic()
    await wait_for(web_server, "1", "lost")
    assert time.monotonic() - returned > 0.1


async def test_a_server_that_slept_gives_the_workers_time_to_renew(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    lost = web_server.rt.web.lost
    await until(lambda: lost._look is not None, 15, "the first look")
    await until(lambda: lost._look_at < time.monotonic() + 0.9)
    lost._ticked_at = (time.monotonic(), time.time() - 3600)
    lost.tick()
    assert lost._look_at > time.monotonic() + 1.0


@pytest.mark.parametrize("topic", ["job:1", "user:7"])
async def test_a_job_that_no_worker_begins_is_lost_for_whoever_watches_it(
    web_server: InProcessServer, publisher: Publisher, topic: str
) -> None:
    long_ago, later = time_text(time.time() - 7200), time_text(time.time() + 7200)
    for job, more in (("1", {}), ("2", {"eta": later})):
        state = {"status": "queued", "attempt": 0, "queued_at": long_ago, **more}
        for name in (f"job:{job}", "user:7"):
            publisher.emit(
                name, type="job_queued", state=state, job=job, key=job, attempt=0, time=long_ago
            )
    await publisher.flush()
    async with NativeClient(web_server, topic) as client:
        await client.wait_synced()
        await until(lambda: client.views[topic].states["1"]["status"] == "lost", 15)
        if topic == "user:7":
            assert client.views[topic].states["2"]["status"] == "queued"
    event = await wait_for(web_server, "1", "lost")
    assert event["data"] == {"reason": "queued"}
    await wait_for(web_server, "2", "queued")


async def test_a_lost_member_ends_its_workflow(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    topic, queued_at = "job:flow", time_text(time.time() - 7200)
    flow = {"total": 3, "ends": "all"}
    parts = {
        "flow": {"status": "running", "attempt": 1, "workflow": flow},
        "a": {"status": "completed", "attempt": 1, "member": {"n": 0}},
        "b": {"status": "running", "attempt": 1, "member": {"n": 1}, "worker": "w"},
        "c": {"status": "queued", "attempt": 0, "member": {"n": 2}, "queued_at": queued_at},
    }
    for key, state in parts.items():
        publisher.emit(
            topic, type="job_progress", key=key, job=key, state=state, attempt=state["attempt"]
        )
    await publisher.flush()
    record = HeldJob("app.read", "7", workflow="flow").encode()
    await hold(publisher, "w", "b", record=record)
    deadline = time.monotonic() + 15
    while (found := await states(web_server, topic))["b"]["state"]["status"] != "lost":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert found["b"]["state"]["member"] == {"n": 1}
    assert found["flow"]["state"]["status"] == "running"
    assert found["c"]["state"]["status"] == "queued", "it waits for its turn"
    publisher.emit(
        topic,
        type="job_started",
        key="c",
        job="c",
        state=parts["c"] | {"status": "running", "attempt": 1, "worker": "v"},
        attempt=1,
    )
    await publisher.flush()
    await hold(publisher, "v", "c", record=record)
    while (found := await states(web_server, topic))["flow"]["state"]["status"] == "running":
        assert time.monotonic() < deadline + 15
        await asyncio.sleep(0.05)
    assert found["flow"]["state"]["status"] == "failed"
    assert "job:b" not in await web_server.rt.backend.tops(["job:b"])
    feed = await states(web_server, "user:7")
    assert list(feed) == ["flow"]


async def test_a_result_backend_that_hangs_holds_up_no_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = pytest.importorskip("semantik_realtime.worker.outcome")
    release = asyncio.Event()

    class Hanging:
        persistent = True

        def get_task_meta(self, job: str, cache: bool) -> dict[str, Any]:
            while not release.is_set():
                time.sleep(0.01)
            return {"status": "SUCCESS", "result": None}

    class App:
        backend = Hanging()

    monkeypatch.setattr(outcome, "find_app", lambda: App)
    results = outcome.CeleryResults()
    for _ in range(2 * outcome.MAX_QUESTIONS):
        began = time.monotonic()
        try:
            async with asyncio.timeout(0.02):
                # More than so many are not even asked.
                assert await results.outcome("1") is None
        except TimeoutError:
            pass
        assert time.monotonic() - began < 5
    assert len(results._asking) == outcome.MAX_QUESTIONS
    release.set()
    await until(lambda: not any(thread.is_alive() for thread in results._asking))
    assert await results.outcome("1") == {"status": "completed"}
