"""Workflows whose messages are those of Celery's first protocol, in which a step is a callback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import chain, group
from celery_workers import Place, Worker, running
from workflow_runs import Task, finish_job, tasks_of, tracking


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module")
def worker(broker: str, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    import mirrored_app

    directory = tmp_path_factory.mktemp("worker")
    with (
        running(broker, place, "threads", directory, TEST_PROTOCOL="1") as worker,
        tracking(worker.settings),
    ):
        mirrored_app.app.conf.task_protocol = 1
        try:
            yield worker
        finally:
            mirrored_app.app.conf.task_protocol = 2
        for fault in ("receiver failed", "step failed", "refused"):
            assert fault not in worker.output


@pytest.fixture
def task(worker: Worker) -> Task:
    return tasks_of(worker)


def test_a_chain_is_one_job(worker: Worker, task: Task) -> None:
    result = chain(task("add", 1, 2), task("add", 3), task("add", 4)).apply_async(
        headers={"realtime_owner": "7"}
    )
    ended = finish_job(worker, str(result.id))
    assert ended.names() == ["add step 1/3", "add step 2/3", "add step 3/3"]
    assert ended.state["status"] == "completed"
    assert ended.log.owner == "7"


@pytest.mark.parametrize(
    "name", ["replace", "replace_by_chain", "replace_by_chord", "replace_by_chain_with_chord"]
)
def test_a_replaced_member_keeps_its_place(worker: Worker, task: Task, name: str) -> None:
    result = group(task(name), task("add", 1, 2)).apply_async()
    ended = finish_job(worker, str(result.id))
    assert ended.state["status"] == "completed"
    assert ended.summary.done == ended.summary.total
    places = [state["member"] for state in ended.states.values() if "member" in state]
    assert sorted(place["at"] for place in places if "of" not in place) == [
        *("group 1/2", "group 2/2")
    ]
