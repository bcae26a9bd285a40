"""Chains and chords of which a task fails, and messages that cannot be read: no job waits."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable
from typing import Any

import celery
import celery.app.trace
import pytest
from celery import chain, chord, group
from celery_workers import Worker
from mirrored_app import add, exit_process, fail, total
from topic_log import Log, wait_until

CELERY = tuple(map(int, celery.__version__.split(".")[:2]))
REMOVES_STEP = "chain.pop()" in inspect.getsource(celery.app.trace)
"""Whether this release of Celery forgets a step before it is published: nobody can name its job."""
POOLS = pytest.mark.parametrize("worker", ["prefork", "threads"], indirect=True)


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


def start(worker: Worker, signature: Any) -> Any:
    return signature.apply_async(queue=worker.queue, headers={"realtime_owner": "7"})


def tasks_of(worker: Worker) -> Callable[..., Any]:
    return lambda *args: add.s(*args).set(queue=worker.queue)


def check_failed_by(worker: Worker, job_id: str, cause: str) -> Log:
    log = worker.wait_for(job_id, "failed")
    assert log.types == ["job_failed"]
    assert log.state["error"]["type"] == "Upstream"
    assert cause in log.state["error"]["message"]
    assert log.owner == "7"
    wait_until(lambda: job_id in {event["key"] for event in worker.log("user:7").events})
    return log


@POOLS
def test_the_rest_of_a_chain_fails_with_its_step(worker: Worker) -> None:
    last = start(worker, chain(fail.si("secret"), add.s(1), add.s(2)))
    first = last.parent.parent.id
    assert worker.wait_for(first, "failed").state["error"]["type"] == "ValueError"
    for job_id in (last.id, last.parent.id):
        log = check_failed_by(worker, job_id, f"mirrored_app.fail ({first}) failed: ValueError")
        assert log.state["name"] == "mirrored_app.add"


@POOLS
# Celery 5.3 itself fails when the body of such a chord is a chain, which has no id.
@pytest.mark.parametrize("has_more", [False, True] if CELERY >= (5, 5) else [False])
def test_the_body_of_a_chord_and_what_follows_it_fail_with_its_header(
    worker: Worker, has_more: bool
) -> None:
    whole = chord(group(add.s(1, 2), fail.s("secret")), total.s())
    last = start(worker, whole | add.s(1) if has_more else whole)
    check_failed_by(worker, last.id, "mirrored_app.fail")


@POOLS
def test_the_members_of_a_group_at_the_end_of_a_chain_fail_with_it(worker: Worker) -> None:
    members = start(worker, chain(fail.si("secret"), group(add.s(1), add.s(2))))
    for child in members.children:
        check_failed_by(worker, child.id, "mirrored_app.fail")


@POOLS
@pytest.mark.parametrize("follows", ["step", "callback"])
def test_a_task_fails_whose_next_step_cannot_be_published(worker: Worker, follows: str) -> None:
    task = tasks_of(worker)
    options = {"queue": worker.queue, "headers": {"realtime_owner": "7"}}
    if follows == "callback":
        job_id = add.apply_async((1, 2), link=task(1, 2), **options).id
    else:
        # The second step gets three arguments, and takes two.
        last = chain(task(1, 2), task(1, 2), task(1)).apply_async(**options)
        job_id = last.parent.parent.id
        for never_run in (last.id,) if REMOVES_STEP else (last.id, last.parent.id):
            check_failed_by(worker, never_run, f"mirrored_app.add ({job_id}) failed: TypeError")
    log = worker.wait_for(job_id, "failed")
    assert log.state["error"]["type"] == "TypeError"
    assert log.types == ["job_started", "job_failed"]
    assert log.owner == "7"
    assert "receiver failed" not in worker.output


@POOLS
def test_the_body_of_a_chord_that_cannot_be_published_fails(worker: Worker) -> None:
    task = tasks_of(worker)
    body = start(worker, chord([task(1, 2), task(3, 4)], task(1, 2)))
    log = worker.wait_for(body.id, "failed")
    assert log.types == ["job_failed"]
    assert log.state["error"]["type"] == "ChordError"
    assert "add() takes 2 positional arguments" in log.state["error"]["message"]
    for child in body.parent.children:
        worker.wait_for(child.id, "completed")


@POOLS
def test_a_message_whose_body_cannot_be_read_fails_its_job(worker: Worker) -> None:
    for body, content_type in ((b"{not json", "application/json"), (b"[]", "application/x-python")):
        job_id = str(uuid.uuid4())
        headers = {"id": job_id, "task": "mirrored_app.add", "realtime_owner": "7", "lang": "py"}
        with worker.app.producer_pool.acquire() as producer:
            producer.publish(
                body,
                routing_key=worker.queue,
                exchange=worker.queue,
                declare=[worker.app.amqp.queues.select_add(worker.queue)],
                headers=headers,
                content_type=content_type,
                content_encoding="utf-8",
            )
        log = worker.wait_for(job_id, "failed")
        assert log.state["error"]["type"] == "Undecodable"
        assert log.owner == "7"
    worker.wait_for(worker.send("add", 1, 2), "completed")


@pytest.mark.parametrize("worker", ["prefork"], indirect=True)
def test_the_rest_of_a_chain_fails_with_a_process_that_dies(worker: Worker) -> None:
    last = start(worker, chain(exit_process.si("kill"), add.si(1, 2)))
    check_failed_by(worker, last.id, "WorkerLostError")
