"""What a process counts of the members of a workflow, and what it publishes of the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from topic_log import Log, Reader, wait_until

from semantik_realtime.config import Settings
from semantik_realtime.core.summary import Summary, summarize
from semantik_realtime.core.workflow import KEPT_CHILDREN, KEPT_FAILURES, KEPT_TALLIES
from semantik_realtime.runtime import Runtime
from semantik_realtime.worker import members
from semantik_realtime.worker.headers import MEMBER, WORKFLOW, inherit, read_job_meta
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta
from semantik_realtime.worker.members import Member, Tallies
from semantik_realtime.worker.places import begin_workflow, give_place
from semantik_realtime.worker.workflow import _Followed, publish

TOTAL = 300
Look = Callable[[str], Log]


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Tallies]:
    """Make this process another one, as far as tallies are concerned."""

    def begin() -> Tallies:
        fresh = Tallies()
        monkeypatch.setattr("semantik_realtime.worker.job.tallies", fresh)
        monkeypatch.setattr("semantik_realtime.worker.places.tallies", fresh)
        monkeypatch.setattr("semantik_realtime.worker.workflow.tallies", fresh)
        return fresh

    begin()
    return begin


def begin(runtime: Runtime, total: int = TOTAL, ends: str = "all") -> None:
    meta = JobMeta("w", "group", "7")
    begin_workflow(runtime, "w", meta, {"total": total, "ends": ends})


def run(runtime: Runtime, number: int, type: str = "job_completed", total: int = TOTAL) -> None:
    place = {"n": number, "total": total, "at": f"group {number + 1}/{total}"}
    job = Job(runtime, JobMeta(f"t{number}", "add", "7", member=Member("w", place)), 1)
    job.begin()
    job.end(type, error={"type": "E", "message": ""} if type == "job_failed" else None)


def states_of(log: Log) -> dict[str, Any]:
    return {key: json.loads(event)["state"] for key, event in log.snapshot().states.items()}


def summary_of(log: Log) -> Summary:
    return summarize(states_of(log), "w", 0)


def test_a_completed_member_of_many_is_counted_and_its_key_removed(
    runtime: Runtime, log: Look
) -> None:
    begin(runtime)
    for number in range(TOTAL):
        run(runtime, number)
    wait_until(lambda: len(states_of(log("job:w"))) == 2)
    assert summary_of(log("job:w")).done == TOTAL


def test_few_members_keep_their_keys_and_need_no_tally(runtime: Runtime, log: Look) -> None:
    begin(runtime, 3)
    for number in range(3):
        run(runtime, number, total=3)
    assert sorted(states_of(log("job:w"))) == ["t0", "t1", "t2", "w"]
    assert log("job:w").types == ["job_queued", *["job_started", "job_completed"] * 3]


def test_a_member_that_two_processes_complete_counts_once(
    runtime: Runtime, log: Look, process: Callable[[], Tallies]
) -> None:
    begin(runtime)
    run(runtime, 5)
    wait_until(lambda: "t5" not in states_of(log("job:w")))
    process()
    job = Job(runtime, JobMeta("t5", member=Member("w", {"n": 5, "total": TOTAL})), 2, is_new=True)
    job.begin()
    log("job:w")
    assert (summary_of(log("job:w")).done, summary_of(log("job:w")).running) == (1, 0)
    job.end("job_completed")
    wait_until(lambda: len(states_of(log("job:w"))) == 3)
    assert summary_of(log("job:w")).done == 1


def test_only_the_first_failures_of_many_keep_their_keys(runtime: Runtime, log: Look) -> None:
    begin(runtime)
    for number in range(KEPT_FAILURES + 10):
        run(runtime, number, "job_failed")
    wait_until(lambda: len(states_of(log("job:w"))) == KEPT_FAILURES + 2)
    summary = summary_of(log("job:w"))
    assert summary.failed == KEPT_FAILURES + 10
    assert [failure.at for failure in summary.failures][:2] == ["group 1/300", "group 2/300"]


def test_what_a_process_has_counted_is_sent_when_it_ends(
    settings: Settings, backend: Any, reader: Reader, process: Callable[[], Tallies]
) -> None:
    runtime = Runtime(settings, backend=backend)
    begin(runtime)
    tallies = process()
    for number in range(20):
        run(runtime, number)
    tallies.send()
    assert runtime.close()
    assert summary_of(Log(reader, "job:w")).done == 20
    assert len(states_of(Log(reader, "job:w"))) == 2


def test_another_process_counts_what_a_killed_one_has_not(
    runtime: Runtime, log: Look, process: Callable[[], Tallies], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(runtime)
    with monkeypatch.context() as patch:
        # As if it had been killed before it could send its tally.
        patch.setattr(members._WorkflowTally, "send", lambda _: None)
        run(runtime, 0)
    monkeypatch.setattr("semantik_realtime.core.workflow.UNCOUNTED_SECONDS", -1.0)
    process()
    assert "t0" in states_of(log("job:w"))
    publish(runtime, _Followed("w", "7", []), states_of(log("job:w")))
    wait_until(lambda: "t0" not in states_of(log("job:w")))
    assert summary_of(log("job:w")).done == 1


def test_tallies_of_many_processes_are_united(
    runtime: Runtime, log: Look, process: Callable[[], Tallies]
) -> None:
    begin(runtime)
    for number in range(2 * KEPT_TALLIES + 5):
        tallies = process()
        run(runtime, number)
        tallies.send()
    before = summary_of(log("job:w"))
    process()
    publish(runtime, _Followed("w", "7", []), states_of(log("job:w")))
    wait_until(lambda: len(states_of(log("job:w"))) == KEPT_TALLIES + 2)
    assert summary_of(log("job:w")).done == before.done == 2 * KEPT_TALLIES + 5


def test_two_followers_end_a_workflow_once(runtime: Runtime, log: Look) -> None:
    begin(runtime, 1)
    run(runtime, 0, total=1)
    states = states_of(log("job:w"))
    for _ in range(2):
        publish(runtime, _Followed("w", "7", []), states)
    events = [event for event in log("job:w").events if event["key"] == "w"]
    assert [event["type"] for event in events] == ["job_queued", "job_completed"]
    assert runtime.emitter.stats.closed == 2
    followed = _Followed("w", "7", [])
    publish(runtime, followed, states_of(log("job:w")))
    assert followed.has_ended


def test_a_published_task_of_a_member_is_given_a_number(runtime: Runtime, log: Look) -> None:
    parent = {"id": "t0", "realtime_owner": "7", WORKFLOW: "w", MEMBER: {"n": 0, "total": 1}}
    for number in range(KEPT_CHILDREN + 1):
        headers: dict[str, Any] = {"id": f"c{number}", "task": "add"}
        inherit(headers, parent)
        give_place(runtime, headers, None, Job(runtime, JobMeta("t0"), 1), headers["id"])
        assert headers[WORKFLOW] == "w"
        assert headers[MEMBER]["n"] == number
        assert headers[MEMBER]["of"]
    # Of these the last one gets no key before it runs, so the tally tells that there is one more.
    wait_until(lambda: summary_of(log("job:w")).waiting == KEPT_CHILDREN + 1)


def test_a_member_may_opt_out() -> None:
    headers: dict[str, Any] = {"id": "c", "task": "add", WORKFLOW: None}
    inherit(headers, {WORKFLOW: "w", "realtime_owner": "7"})
    meta = read_job_meta(headers)
    assert meta is not None
    assert meta.member is None
    assert meta.topic == "job:c"


@pytest.mark.parametrize("place", [None, 7, {"n": -1}, {"n": "1"}, {"n": 1, "of": 4}])
def test_a_member_without_a_place_counts_by_its_id(place: object) -> None:
    meta = read_job_meta({"id": "c", "task": "add", WORKFLOW: "w", MEMBER: place})
    assert meta is not None
    assert meta.member is not None
    assert (meta.member.giver, meta.member.number) == ("c", 0)


def test_a_job_that_cannot_be_a_topic_is_refused() -> None:
    meta = read_job_meta({"id": "c", "task": "add", WORKFLOW: "a\nb"})
    assert meta is not None
    assert meta.member is None
