"""Canvases that are published with Celery's own calls are one job each, with real workers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest
from celery import chain, chord, group, signature
from celery_workers import Place, Worker, running
from topic_log import wait_until
from web_side import web_of
from workflow_runs import Ended, Task, finish_job, states_of, tasks_of, tracking

from semantik_realtime.cli.discovery import ReceivedTasks
from semantik_realtime.core.summary import summarize
from semantik_realtime.core.workflow import KEPT_MEMBERS
from semantik_realtime.worker.canvas import MAPS_KEEP_OPTIONS

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))
OWNED = {"realtime_owner": "7"}
POOLS = ["prefork", "threads"]
GREEN = [name for name in ("gevent", "eventlet") if importlib.util.find_spec(name)]


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module", params=POOLS)
def worker(
    request: pytest.FixtureRequest,
    broker: str,
    place: Place,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Worker]:
    directory = tmp_path_factory.mktemp("worker")
    environment = {"TEST_CONCURRENCY": "4", "TEST_EVENTS": "1"}
    with (
        running(broker, place, request.param, directory, **environment) as worker,
        tracking(worker.settings),
    ):
        yield worker
        for fault in ("receiver failed", "step failed", "source failed", "workflow: "):
            assert fault not in worker.output


@pytest.fixture
def task(worker: Worker) -> Task:
    return tasks_of(worker)


Run = Callable[..., Ended]


@pytest.fixture
def run(worker: Worker) -> Run:
    def run(canvas: Any, *args: Any) -> Ended:
        result = canvas.apply_async(*args, headers=OWNED)
        ended = finish_job(worker, str(result.id))
        assert ended.log.owner == "7"
        return ended

    return run


def ids_of(result: Any) -> set[str]:
    """Return the ids of all tasks of a result."""
    found: set[str] = set()
    while result is not None:
        children = getattr(result, "results", None)
        found |= {str(result.id)} if children is None else set().union(*map(ids_of, children))
        result = result.parent
    return found


CANVASES: dict[str, Callable[[Task], tuple[Any, list[str]]]] = {
    "group": lambda task: (
        group(task("add", 1, 2), task("add", 3, 4)),
        ["add group 1/2", "add group 2/2"],
    ),
    "chain": lambda task: (
        chain(task("add", 1, 2), task("add", 3), task("add", 4)),
        ["add step 1/3", "add step 2/3", "add step 3/3"],
    ),
    "chord": lambda task: (
        chord([task("add", 1, 2), task("add", 3, 4)], task("total")),
        ["add header 1/2", "add header 2/2", "total body"],
    ),
    "chain that ends with a group": lambda task: (
        chain(task("add", 1, 2), group(task("add", 1), task("add", 2))),
        ["add step 1/2", "add step 2/2, group 1/2", "add step 2/2, group 2/2"],
    ),
    "group of one chain that ends with a group": lambda task: (
        group(chain(task("add", 1, 2), group(task("add", 1), task("add", 2)))),
        [
            "add group 1/1, step 1/2",
            "add group 1/1, step 2/2, group 1/2",
            "add group 1/1, step 2/2, group 2/2",
        ],
    ),
    "nested": lambda task: (
        chain(
            task("add", 1, 2),
            task("list_of"),
            chord([task("total"), task("total")], task("total")),
            task("add", 1),
        ),
        [
            *("add step 1/3", "list_of step 2/3"),
            *("total step 3/3, header 1/2", "total step 3/3, header 2/2"),
            *("total step 3/3, body, step 1/2", "add step 3/3, body, step 2/2"),
        ],
    ),
    "chains in a group": lambda task: (
        group(chain(task("add", 1, n), task("add", 1)) for n in range(2)),
        [
            *("add group 1/2, step 1/2", "add group 1/2, step 2/2"),
            *("add group 2/2, step 1/2", "add group 2/2, step 2/2"),
        ],
    ),
}


# Celery 5.3 itself waits for ever for the result of one of them.
WAITED_FOR = [kind for kind in CANVASES if CELERY >= (5, 5) or not kind.startswith("group of one")]


@pytest.mark.parametrize("kind", CANVASES)
def test_every_canvas_is_one_job_with_the_id_of_its_result(
    worker: Worker, task: Task, kind: str
) -> None:
    canvas, names = CANVASES[kind](task)
    result = canvas.apply_async(headers=OWNED)
    ended = finish_job(worker, str(result.id))
    assert ended.names() == names
    assert ended.state["status"] == "completed"
    assert (ended.summary.done, ended.summary.total) == (len(names), len(names))
    assert ended.log.owner == "7"
    for task_id in ids_of(result):
        if task_id == ended.id:
            assert ended.states[f"{task_id}:last"]["status"] == "completed"
        else:
            assert ended.states[task_id]["status"] == "completed"
            # No event of it is anywhere else.
            assert worker.log(f"job:{task_id}").events == []
    feed = {event["key"] for event in worker.log("user:7").events}
    assert ended.id in feed
    assert not feed & (ended.states.keys() - {ended.id})
    if kind in WAITED_FOR:
        assert result.get(timeout=10) is not None


FAILURES: dict[str, tuple[Callable[[Task], Any], str, tuple[int, int, int]]] = {
    # The canvas, where it fails, and how many are done, failed and skipped.
    "first step": (lambda t: chain(t("fail", "x"), t("add", 1)), "step 1/2", (0, 1, 1)),
    "last step": (lambda t: chain(t("add", 1, 2), t("fail_after")), "step 2/2", (1, 1, 0)),
    "member": (lambda t: group(t("fail", "x"), t("add", 1, 2)), "group 1/2", (1, 1, 0)),
    "header": (
        lambda t: chord([t("fail", "x"), t("add", 1, 2)], t("total")),
        "header 1/2",
        (1, 1, 1),
    ),
    "body": (lambda t: chord([t("add", 1, 2)] * 2, t("fail")), "body", (2, 1, 0)),
    "step of a member": (
        lambda t: group(chain(t("fail", "x"), t("add", 1)), t("add", 1, 2)),
        "group 1/2, step 1/2",
        (1, 1, 1),
    ),
    "step that cannot be published": (
        lambda t: chain(t("add", 1, 2), t("add", 1, 2)),
        "step 1/2",
        (0, 1, 1),
    ),
}


@pytest.mark.parametrize(("canvas", "at", "counts"), FAILURES.values(), ids=FAILURES)
def test_a_failure_names_its_place(
    run: Run, task: Task, canvas: Callable[[Task], Any], at: str, counts: tuple[int, int, int]
) -> None:
    ended = run(canvas(task))
    assert ended.state["status"] == "failed"
    assert ended.state["error"]["where"].startswith(f"{at} · mirrored_app.")
    assert ended.states[ended.state["error"]["key"]]["status"] == "failed"
    summary = ended.summary
    assert (summary.done, summary.failed, summary.skipped) == counts


def test_a_retry_and_a_replacement_keep_their_places(run: Run, task: Task) -> None:
    # The last step has the id of the whole, which a retry and a replacement pass on.
    for last in ("retry", "replace_by_chain"):
        step = task(last, 1) if last == "retry" else task(last)
        ended = run(chain(task("add", 1, 2), step.set(immutable=True)))
        assert ended.state["status"] == "completed"
        assert ended.states[f"{ended.id}:last"]["status"] == "completed"
        assert ended.states[f"{ended.id}:last"]["attempt"] > 1
        assert ended.summary.done == ended.summary.total
    ended = run(group(task("retry", 2), task("replace")))
    assert (ended.summary.done, ended.summary.total) == (2, 2)


# Releases of Celery that drop the options of chunks leave them single.
KINDS = ["chain", "group", "chord", *(["chunks"] if MAPS_KEEP_OPTIONS else [])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_canvas_of_a_task_is_a_job_of_its_own_with_the_same_owner(
    worker: Worker, kind: str
) -> None:
    starter = worker.send("start", kind)
    [job] = worker.app.AsyncResult(starter).get(timeout=30)
    ended = finish_job(worker, job)
    assert ended.state["status"] == "completed"
    assert ended.summary.done == ended.summary.total > 1
    assert ended.log.owner == "7"
    # The task that has started it is the job that it was.
    log = worker.wait_for(starter, "completed")
    assert {event["key"] for event in log.events} == {starter}


def test_a_canvas_of_a_member_adds_members_and_is_no_second_job(
    worker: Worker, run: Run, task: Task
) -> None:
    ended = run(chain(task("start", "chain"), task("ignore_result_of")))
    assert (ended.summary.done, ended.summary.total) == (5, 5)
    others = [key for key in ended.states if key not in (ended.id, f"{ended.id}:last")]
    assert all(worker.log(f"job:{key}").events == [] for key in others)


def test_a_canvas_of_a_member_may_be_a_job_of_its_own(worker: Worker, task: Task) -> None:
    result = group(task("start", "chain of its own"), task("add", 1, 2)).apply_async(headers=OWNED)
    [job], _ = result.get(timeout=30)
    for each, total in ((str(result.id), 2), (job, 2)):
        ended = finish_job(worker, each)
        assert (ended.summary.done, ended.summary.total) == (2, total)
        assert ended.log.owner == "7"


def test_a_big_group_keeps_few_keys_and_counts_each_member(run: Run, task: Task) -> None:
    # A generator, as it is written most often.
    ended = run(group(task("fail", "x") if n == 7 else task("add", 1, n) for n in range(300)))
    assert ended.state["status"] == "failed"
    assert ended.state["error"]["where"] == "group 8/300 · mirrored_app.fail"

    def summary() -> Any:
        return summarize(states_of(ended.log), ended.id, 0)

    wait_until(lambda: len(states_of(ended.log)) < KEPT_MEMBERS)
    assert (summary().done, summary().failed, summary().total) == (299, 1, 300)


def test_a_canvas_that_another_process_has_made_is_one_job(run: Run, task: Task) -> None:
    canvas = chord([task("add", 1, 2)] * 2, chain(task("total"), task("add", 1)))
    ended = run(signature(json.loads(json.dumps(canvas)), app=task("add").app))
    assert ended.names() == [
        *("add header 1/2", "add header 2/2"),
        *("total body, step 1/2", "add body, step 2/2"),
    ]
    assert ended.state["status"] == "completed"


def test_revoke_does_what_celery_does(worker: Worker, task: Task) -> None:
    result = chain(task("sleep", 1.5), task("sleep", 0.1).set(immutable=True)).apply_async(
        headers=OWNED
    )
    log = worker.log(f"job:{result.id}")
    wait_until(lambda: (states_of(log).get(str(result.id)) or {}).get("status") == "running", 20)
    result.revoke()
    ended = finish_job(worker, str(result.id))
    assert ended.state["status"] == "cancelled"
    # The first step was left alone.
    assert (ended.summary.done, ended.summary.cancelled) == (1, 1)


def test_cancelling_the_job_concerns_all_members(worker: Worker, task: Task) -> None:
    async def cancel() -> Ended:
        async with web_of(worker) as web:
            result = await asyncio.to_thread(
                chain(task("work", 60, True), task("add", 1)).apply_async, headers=OWNED
            )
            log = worker.log(f"job:{result.id}")
            await asyncio.to_thread(
                wait_until,
                lambda: (states_of(log).get(str(result.id)) or {}).get("status") == "running",
                20,
            )
            assert await web.cancel(str(result.id)) == (202, "cancelling")
            return await asyncio.to_thread(finish_job, worker, str(result.id))

    ended = asyncio.run(cancel())
    assert ended.state["status"] == "cancelled"
    assert (ended.summary.cancelled, ended.summary.skipped) == (1, 1)


def test_a_page_that_listens_to_celerys_events_finds_the_workflow(
    worker: Worker, task: Task
) -> None:
    tasks = ReceivedTasks(worker.app)
    tasks.start()
    try:

        def listed() -> dict[str, str]:
            return {task["id"]: task["name"] for task in tasks.newest()}

        def listens() -> bool:
            worker.send("add", 1, 2)
            with contextlib.suppress(AssertionError):
                wait_until(listed, 1)
            return bool(listed())

        wait_until(listens, 30)
        result = chain(task("add", 1, 2), task("add", 3)).apply_async()
        wait_until(lambda: listed().get(str(result.id)) == "workflow", 20)
        finish_job(worker, str(result.id))
        last = worker.send("add", 1, 2)
        wait_until(lambda: last in listed(), 20)
        assert str(result.parent.id) not in listed()
    finally:
        tasks.stop()


def test_switched_off_its_tasks_are_single_jobs(worker: Worker, task: Task) -> None:
    off = worker.settings.model_copy(update={"mirror_workflows": False})
    with tracking(off):
        result = group(task("add", 1, 2), task("add", 3, 4)).apply_async(headers=OWNED)
    for child in result.children:
        log = worker.wait_for(str(child.id), "completed")
        assert {event["key"] for event in log.events} == {str(child.id)}
    assert worker.log(f"job:{result.id}").events == []


@pytest.mark.parametrize("worker", GREEN[:1], indirect=True)
def test_in_pools_of_greenlets_too(worker: Worker, run: Run, task: Task) -> None:
    ended = run(chain(task("start", "group"), task("fail")))
    assert ended.state["error"]["where"] == "step 2/2 · mirrored_app.fail"
    assert ended.summary.done == 4
    starter = worker.send("start", "chord")
    [job] = worker.app.AsyncResult(starter).get(timeout=30)
    assert finish_job(worker, job).state["status"] == "completed"
