"""Workflows as one job, with real workers: where each member is, and when the whole has ended."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery_workers import Place, Worker, running
from topic_log import wait_until
from workflow_runs import Ended, Task, completed, finish, states_of, submitting, tasks_of

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.core.lifecycle import has_ended
from semantik_realtime.core.summary import summarize
from semantik_realtime.core.workflow import KEPT_FAILURES, KEPT_MEMBERS
from semantik_realtime.errors import InvalidInput
from semantik_realtime.worker.canvas import MAPS_KEEP_OPTIONS
from semantik_realtime.worker.submit import Submitted


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module")
def worker(broker: str, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    directory = tmp_path_factory.mktemp("worker")
    with running(broker, place, "prefork", directory) as worker:
        yield worker
        for fault in ("receiver failed", "step failed", "source failed", "workflow: "):
            assert fault not in worker.output


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def send(worker: Worker) -> Iterator[Callable[..., Submitted]]:
    with submitting(worker) as send:
        yield send


@pytest.fixture(scope="module")
def run(worker: Worker, send: Callable[..., Submitted]) -> Run:
    return lambda *args, **options: finish(worker, send(*args, **options))


@pytest.fixture(scope="module")
def task(worker: Worker) -> Callable[..., Any]:
    return tasks_of(worker)


def test_a_chain_is_one_job_that_ends_with_its_last_step(run: Run, task: Task) -> None:
    ended = run(chain(task("add", 1, 2), task("add", 3), task("add", 4)), job_id="import:42")
    assert ended.id == "import:42"
    assert ended.names() == ["add step 1/3", "add step 2/3", "add step 3/3"]
    assert ended.state["status"] == "completed"
    assert ended.state["name"] == "chain of 3 tasks"
    assert ended.state["progress"] == {"current": 3, "total": 3, "unit": "tasks"}
    assert ended.state["queued_at"] <= ended.state["started_at"] <= ended.state["ended_at"]
    assert (ended.summary.done, ended.summary.total) == (3, 3)
    assert ended.log.owner == "7"


def test_the_owners_feed_shows_the_whole_and_no_member(
    worker: Worker, run: Run, task: Task
) -> None:
    ended = run(group(task("add", 1, n) for n in range(3)), topics=["collection:wf"])
    for topic in ("user:7", "collection:wf"):
        feed = worker.log(topic).events
        assert not {event["key"] for event in feed} & (ended.states.keys() - {ended.id})
        shown = [event["state"]["status"] for event in feed if event["key"] == ended.id]
        assert shown[0] == "queued"
        assert shown[-1] == "completed"


@pytest.mark.parametrize("kind", ["group", "chord", "nested", "chains", "chain and group"])
def test_every_canvas_is_one_job(run: Run, task: Task, kind: str) -> None:
    one = task("add", 1, 2)
    pair = [task("add", 1, 2), task("add", 3, 4)]
    canvas, names = {
        "group": (group(pair), ["add group 1/2", "add group 2/2"]),
        "chord": (chord(pair, task("total")), ["add header 1/2", "add header 2/2", "total body"]),
        "nested": (
            chain(one, task("list_of"), chord([task("total"), task("total")], task("total"))),
            [
                *("add step 1/3", "list_of step 2/3"),
                *("total step 3/3, header 1/2", "total step 3/3, header 2/2"),
                "total step 3/3, body",
            ],
        ),
        "chains": (
            group(chain(task("add", 1, n), task("add", 1)) for n in range(2)),
            [
                *("add group 1/2, step 1/2", "add group 1/2, step 2/2"),
                *("add group 2/2, step 1/2", "add group 2/2, step 2/2"),
            ],
        ),
        "chain and group": (
            chain(task("add", 1, 2), group(task("add", 1), task("add", 2))),
            ["add step 1/2", "add step 2/2, group 1/2", "add step 2/2, group 2/2"],
        ),
    }[kind]
    ended = run(canvas)
    assert ended.names() == names
    assert ended.state["status"] == "completed"
    assert (ended.summary.done, ended.summary.total) == (len(names), len(names))


def test_a_map_is_one_member(worker: Worker, run: Run, task: Task) -> None:
    import mirrored_app

    many = mirrored_app.add.starmap([(1, 2), (3, 4)]).set(queue=worker.queue)
    if not MAPS_KEEP_OPTIONS:
        # This release of Celery drops them, and a member's place with them.
        with pytest.raises(InvalidInput, match="use a group"):
            run(group(many, task("add", 1, 2)))
        return
    ended = run(group(many, task("add", 1, 2)))
    assert ended.names() == ["starmap group 1/2", "add group 2/2"]
    assert ended.state["status"] == "completed"


FAILURES = {
    "first step": ([("fail", "x"), ("add", 1), ("add", 2)], 0, 2),
    "last step": ([("add", 1, 2), ("add", 3), ("fail_after",)], 2, 0),
}


@pytest.mark.parametrize(("steps", "failed", "skipped"), FAILURES.values(), ids=FAILURES)
def test_a_failed_step_of_a_chain_fails_the_whole(
    run: Run, task: Task, steps: list[tuple[Any, ...]], failed: int, skipped: int
) -> None:
    ended = run(chain(task(*step) for step in steps))
    where = f"step {failed + 1}/3 · mirrored_app.{steps[failed][0]}"
    assert ended.state["status"] == "failed"
    assert ended.state["error"]["type"] == "ValueError"
    assert ended.state["error"]["where"] == where
    assert ended.states[ended.state["error"]["key"]]["status"] == "failed"
    summary = ended.summary
    assert (summary.done, summary.failed, summary.skipped) == (failed, 1, skipped)
    assert [failure.at for failure in summary.failures] == [f"step {failed + 1}/3"]


IGNORED: dict[str, Callable[[Task], Any]] = {
    "chain": lambda task: chain(task("ignore"), task("add", 1, 2)),
    "chord": lambda task: chord([task("ignore"), task("add", 1, 2)], task("total")),
    "chains": lambda task: group(chain(task("ignore"), task("add", 1, 2)), task("add", 1, 2)),
}


@pytest.mark.parametrize("kind", IGNORED)
def test_what_waits_for_an_ignored_task_is_skipped(run: Run, task: Task, kind: str) -> None:
    ended = run(IGNORED[kind](task))
    assert ended.state["status"] == "cancelled"
    assert (ended.summary.cancelled, ended.summary.skipped, ended.summary.failed) == (1, 1, 0)


def test_a_failed_member_of_a_chord_fails_the_whole_before_the_others_end(
    worker: Worker, send: Callable[..., Submitted], task: Task
) -> None:
    sent = send(chord([task("fail", "x"), task("sleep", 3.0)], task("total")))
    log = worker.log(sent.topic)
    wait_until(lambda: has_ended(states_of(log).get(sent.id)), 20)
    assert "running" in {state["status"] for state in states_of(log).values()}
    ended = finish(worker, sent)
    assert ended.state["error"]["where"] == "header 1/2 · mirrored_app.fail"
    summary = ended.summary
    assert (summary.done, summary.failed, summary.skipped) == (1, 1, 1)


UNPUBLISHED = {
    # A task that gets one argument too many.
    "step": (lambda task: chain(task("add", 1, 2), task("add", 1, 2)), "step 1/2"),
    "step of a group": (
        lambda task: group(chain(task("add", 1, 2), task("add", 1, 2)), task("add", 1, 2)),
        "group 1/2, step 1/2",
    ),
    "body": (lambda task: chord([task("add", 1, 2)], task("add", 1, 2)), "body"),
}


@pytest.mark.parametrize(("canvas", "at"), UNPUBLISHED.values(), ids=UNPUBLISHED)
def test_what_celery_cannot_publish_fails_the_whole(
    run: Run, task: Task, canvas: Callable[[Task], Any], at: str
) -> None:
    ended = run(canvas(task))
    assert ended.state["status"] == "failed"
    assert ended.state["error"]["where"] == f"{at} · mirrored_app.add"
    assert "takes 2 positional arguments" in ended.state["error"]["message"]
    summary = ended.summary
    assert summary.failed == 1
    assert summary.done + summary.failed + summary.skipped == summary.total


def test_a_failed_body_fails_the_whole(run: Run, task: Task) -> None:
    ended = run(chord([task("add", 1, 2)] * 2, task("fail")))
    assert ended.state["error"]["where"] == "body · mirrored_app.fail"
    assert (ended.summary.done, ended.summary.failed) == (2, 1)


def test_a_group_with_a_failed_member_fails_when_all_have_ended(run: Run, task: Task) -> None:
    ended = run(
        group(task("fail", "x"), chain(task("fail", "y"), task("add", 1)), task("sleep", 1))
    )
    assert ended.state["status"] == "failed"
    assert ended.state["error"]["where"].startswith("group ")
    summary = ended.summary
    assert (summary.done, summary.failed, summary.skipped) == (1, 2, 1)
    assert [failure.at for failure in summary.failures] == ["group 1/3", "group 2/3, step 1/2"]
    last = max(state["ended_at"] for state in ended.states.values() if "member" in state)
    assert ended.state["ended_at"] >= last


def test_a_retried_member_counts_once(run: Run, task: Task) -> None:
    ended = run(group(task("retry", 2), task("add", 1, 2)))
    assert (ended.summary.done, ended.summary.total) == (2, 2)
    assert {state["attempt"] for state in ended.states.values() if "member" in state} == {1, 3}


def test_a_member_whose_process_was_killed_and_that_ran_again_counts_once(
    run: Run, task: Task
) -> None:
    ended = run(group(task("exit_process_once"), task("add", 1, 2)))
    assert ended.state["status"] == "completed"
    assert (ended.summary.done, ended.summary.total) == (2, 2)


def test_a_member_whose_process_was_killed_fails_the_group(run: Run, task: Task) -> None:
    ended = run(group(task("exit_process", "kill"), task("add", 1, 2)))
    assert ended.state["status"] == "failed"
    assert ended.state["error"]["where"] == "group 1/2 · mirrored_app.exit_process"


@pytest.mark.parametrize("name", ["replace", "replace_by_chain", "replace_by_group"])
def test_a_replaced_member_keeps_its_place(run: Run, task: Task, name: str) -> None:
    ended = run(group(task(name), task("add", 1, 2)))
    assert ended.state["status"] == "completed"
    assert ended.summary.done == ended.summary.total
    submitted = [
        state["member"]
        for state in ended.states.values()
        if "member" in state and "of" not in state["member"]
    ]
    assert sorted(member["at"] for member in submitted) == ["group 1/2", "group 2/2"]


def test_a_member_fails_with_a_part_of_what_replaced_it(run: Run, task: Task) -> None:
    ended = run(group(chain(task("replace_by_failing_chain"), task("add", 1)), task("add", 1, 2)))
    assert ended.state["status"] == "failed"
    summary = ended.summary
    # The part that failed is a member too.
    assert (summary.done, summary.failed, summary.running, summary.waiting) == (1, 2, 0, 0)
    assert summary.skipped == 1


@pytest.mark.parametrize(("kind", "children"), [("delay", 1), ("chain", 3), ("chord", 4)])
def test_what_a_member_publishes_is_a_member_too(
    run: Run, task: Task, kind: str, children: int
) -> None:
    ended = run(chain(task("start", kind), task("ignore_result_of")))
    assert ended.state["status"] == "completed"
    assert (ended.summary.done, ended.summary.total) == (2 + children, 2 + children)


def test_a_big_group_keeps_few_keys_and_counts_each_member(run: Run, task: Task) -> None:
    members = [task("add", 1, n) for n in range(300)]
    members[7:7] = [task("fail", "x"), task("fail", "y")]
    ended = run(group(members))
    assert ended.state["status"] == "failed"
    assert ended.state["error"]["where"].startswith("group ")
    wait_until(lambda: len(states_of(ended.log)) < KEPT_FAILURES)
    states = states_of(ended.log)
    summary = summarize(states, ended.id, 0)
    assert (summary.done, summary.failed, summary.total) == (300, 2, 302)
    assert {failure.at for failure in summary.failures} == {"group 8/302", "group 9/302"}
    assert len(states) < KEPT_MEMBERS


def test_several_tasks_are_one_job_of_the_applications_own(
    worker: Worker, send: Callable[..., Submitted], task: Task
) -> None:
    import mirrored_app

    send(task("add", 1, 2), member_of="nightly")
    log = worker.log("job:nightly")
    wait_until(lambda: completed(log) == 1)
    assert states_of(log)["nightly"]["status"] in ("queued", "running")
    # With Celery's own call and the header alone.
    mirrored_app.add.apply_async(
        (3, 4), queue=worker.queue, headers={"realtime_owner": "7", "realtime_job": "nightly"}
    )
    wait_until(lambda: completed(log) == 2)
    assert not has_ended(states_of(log)["nightly"])
    ended = finish(worker, send(task("sleep", 0.1), member_of="nightly", is_last=True))
    assert ended.id == "nightly"
    assert ended.state["status"] == "completed"
    assert (ended.summary.done, ended.summary.total) == (3, 3)


POOLS = ["threads", *(name for name in ("gevent", "eventlet") if importlib.util.find_spec(name))]


@pytest.mark.parametrize("pool", POOLS)
def test_in_other_pools_too(broker: str, place: Place, tmp_path: Path, pool: str) -> None:
    with running(broker, place, pool, tmp_path) as worker, submitting(worker) as send:
        task = tasks_of(worker)
        pair = [task("add", 1, 2), task("retry", 1)]
        ended = finish(
            worker, send(chain(task("add", 1, 2), task("list_of"), group(pair_of(task))))
        )
        assert ended.state["status"] == "completed"
        failed = finish(worker, send(group(*pair, task("fail", "x"))))
        assert failed.state["error"]["where"] == "group 3/3 · mirrored_app.fail"
        assert (failed.summary.done, failed.summary.failed) == (2, 1)
        assert "workflow: " not in worker.output


def pair_of(task: Task) -> list[Any]:
    return [task("total"), task("total")]


def test_a_worker_that_stops_at_once_ends_its_workflows_first(
    broker: str, place: Place, tmp_path: Path
) -> None:
    lease = {"SEMANTIK_REALTIME_LEASE_SECONDS": "1"}
    with running(broker, place, "prefork", tmp_path, **lease) as worker, submitting(worker) as send:
        task = tasks_of(worker)
        sent = send(group(task("add", 1, 2), task("add", 3, 4)))
        log = worker.log(sent.topic)
        wait_until(lambda: completed(log) >= 2, 20)
        worker.process.terminate()
        worker.process.wait(30)
        assert states_of(log)[sent.id]["status"] == "completed"
        # Nothing is left for a web server to look at.
        time.sleep(1)
        backend = load_backend(worker.settings)
        assert list(backend.overdue(1)) == []
        backend.close_writer()


def test_headers_of_the_canvas_reach_its_members(run: Run, task: Task) -> None:
    ended = run(group(task("add", 1, 2), task("add", 3, 4)).set(headers={"own": "x"}))
    assert ended.names() == ["add group 1/2", "add group 2/2"]
    assert ended.state["status"] == "completed"
