"""A workflow is cancelled, and with it its members: real workers, and Celery's own broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from celery import group
from celery_workers import Place, Worker, running
from topic_log import Log, wait_until
from web_side import web_of
from workflow_runs import finish, states_of, submitting, tasks_of


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture(scope="module", params=["prefork", "gevent"])
def worker(
    request: pytest.FixtureRequest,
    broker: str,
    place: Place,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Worker]:
    with running(broker, place, request.param, tmp_path_factory.mktemp("worker")) as worker:
        yield worker
        for fault in ("receiver failed", "step failed", "source failed", "workflow: "):
            assert fault not in worker.output


def running_members(log: Log) -> int:
    states = states_of(log).values()
    return sum(state["status"] == "running" for state in states if "member" in state)


def started_members(log: Log, workflow: str) -> set[Any]:
    return {event["key"] for event in log.events if event["type"] == "job_started"} - {workflow}


@pytest.mark.parametrize("worker", ["prefork"], indirect=True)
async def test_a_cancelled_workflow_ends_its_tasks_that_ask_and_starts_no_others(
    worker: Worker,
) -> None:
    with submitting(worker) as send:
        task = tasks_of(worker)
        async with web_of(worker) as web:
            # More tasks than the worker has processes: some have begun, and some wait.
            sent = await asyncio.to_thread(send, group(task("work", 60, True) for _ in range(5)))
            log = worker.log(sent.topic)
            await asyncio.to_thread(wait_until, lambda: running_members(log) == 2, 20)
            await asyncio.to_thread(
                wait_until, lambda: states_of(log)[sent.id]["status"] == "running"
            )
            assert await web.cancel(sent.id) == (202, "cancelling")
            ended = await asyncio.to_thread(finish, worker, sent)
    assert ended.state["status"] == "cancelled"
    assert (ended.summary.cancelled, ended.summary.total) == (5, 5)
    assert len(started_members(log, sent.id)) == 2


async def test_a_signal_ends_the_running_members_of_a_cancelled_workflow(worker: Worker) -> None:
    with submitting(worker) as send:
        task = tasks_of(worker)
        async with web_of(worker, cancel_signal="SIGTERM") as web:
            # Tasks that never ask.
            members = [*(task("work", 60, False) for _ in range(2)), task("add", 1, 2)]
            sent = await asyncio.to_thread(send, group(members))
            log = worker.log(sent.topic)
            await asyncio.to_thread(wait_until, lambda: running_members(log) == 2, 20)
            await asyncio.to_thread(
                wait_until, lambda: states_of(log)[sent.id]["status"] == "running"
            )
            assert await web.cancel(sent.id) == (202, "cancelling")
            ended = await asyncio.to_thread(finish, worker, sent, 20)
    assert ended.state["status"] == "cancelled"
    assert (ended.summary.cancelled, ended.summary.total) == (3, 3)
    hows = [
        event["data"]["how"]
        for event in log.events
        if event["type"] == "job_cancelled" and event["key"] != sent.id
    ]
    assert sorted(hows) == ["revoked", "terminated", "terminated"]
