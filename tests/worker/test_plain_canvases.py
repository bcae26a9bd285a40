"""Canvases that are published with Celery's own calls are one job each, with real workers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery_workers import Place, Worker, running
from topic_log import wait_until
from workflow_runs import Ended, Task, finish_job, states_of, tasks_of, tracking

from semantik_realtime.config import Settings
from semantik_realtime.core.summary import summarize
from semantik_realtime.core.workflow import KEPT_MEMBERS
from semantik_realtime.worker.canvas import MAPS_KEEP_OPTIONS

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
    with (
        running(broker, place, request.param, directory, TEST_CONCURRENCY="4") as worker,
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
    assert result.get(timeout=10) is not None
