"""What a task publishes belongs to its job's owner, in whichever way Celery publishes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery_workers import Place, Worker, running
from topic_log import wait_until

from semantik_realtime.worker.headers import inherit, is_job, read_job_meta


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


def owner_of(worker: Worker, job_id: str) -> str | None:
    log = worker.wait_for(job_id, "completed")
    return log.owner


KINDS = ["delay", "chain", "group", "chord", "link", "link_error", "chunks", "starmap", "nested"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_task_publishes_belongs_to_its_owner(worker: Worker, kind: str) -> None:
    headers = {"realtime_topics": "collection:9"}
    job_ids = worker.app.AsyncResult(start(worker, kind, **headers)).get(timeout=30)
    assert job_ids
    for job_id in job_ids:
        assert owner_of(worker, job_id) == "7"
    further = worker.log("collection:9")
    # Other topics get the end in another call than the job's own.
    wait_until(lambda: set(job_ids) <= {event["key"] for event in further.events})


def start(worker: Worker, kind: str, **headers: Any) -> str:
    result = worker.app.send_task(
        "mirrored_app.start",
        (kind,),
        queue=worker.queue,
        headers={"realtime_owner": "7", **headers},
    )
    return str(result.id)


def test_what_follows_a_killed_process_belongs_to_its_owner(
    broker: str, place: Place, tmp_path: Path
) -> None:
    with running(broker, place, "prefork", tmp_path) as worker:
        job_id = start(worker, "link_error of a killed process")
        [callback] = worker.app.AsyncResult(job_id).get(timeout=30)
        assert owner_of(worker, callback) == "7"


def test_a_canvas_published_outside_of_tasks_is_given_its_owner_once(worker: Worker) -> None:
    import mirrored_app as app

    def on_queue(signature: Any) -> Any:
        return signature.set(queue=worker.queue)

    def one() -> Any:
        return on_queue(app.add.s(1, 2))

    headers = {"realtime_owner": "7"}
    steps = chain(one(), on_queue(app.add.s(3)), on_queue(app.add.s(4)))
    last = steps.apply_async(headers=headers)
    members = group(one() for _ in range(3)).apply_async(headers=headers)
    body = chord([one() for _ in range(3)], on_queue(app.total.s())).apply_async(headers=headers)
    for result in (last, last.parent, last.parent.parent, *members.children, body):
        assert owner_of(worker, result.id) == "7"


def test_an_owner_may_be_a_stamp_or_an_option_of_the_signature(worker: Worker) -> None:
    import mirrored_app as app

    stamped = app.add.s(1, 2).set(queue=worker.queue)
    stamped.stamp(realtime_owner="8")
    assert owner_of(worker, stamped.apply_async().id) == "8"
    steps = chain(*(app.add.s(*numbers).set(queue=worker.queue) for numbers in ((1, 2), (3,))))
    steps.stamp(realtime_owner="8")
    last = steps.apply_async()
    assert [owner_of(worker, result.id) for result in (last, last.parent)] == ["8", "8"]
    optioned = app.add.s(1, 2).set(queue=worker.queue, headers={"realtime_owner": "9"})
    assert owner_of(worker, optioned.apply_async().id) == "9"


def test_a_task_replaced_by_a_group_ends_when_the_group_has(worker: Worker) -> None:
    job_id = worker.send("replace_by_group")
    log = worker.wait_for(job_id, "completed")
    assert log.owner == "7"
    assert log.types.count("job_completed") == 1
    wait_until(lambda: worker.app.AsyncResult(job_id).ready())


def test_a_message_keeps_what_is_its_own() -> None:
    parent = {"realtime_owner": "7", "realtime_topics": ["collection:9"]}
    for own in (
        {"realtime_owner": "8"},
        {"realtime_owner": None},
        {"stamps": {"realtime_owner": "8"}},
    ):
        headers = {"id": "1", "task": "t", **own}
        inherit(headers, parent)
        meta = read_job_meta(headers)
        assert meta is not None
        assert meta.owner == (None if None in own.values() else "8")
        assert meta.topics == ("collection:9",)


def test_celerys_tasks_that_run_the_applications_code_are_jobs() -> None:
    assert is_job("celery.starmap")
    assert not is_job("celery.chord_unlock")
    assert not is_job("celery.backend_cleanup")
