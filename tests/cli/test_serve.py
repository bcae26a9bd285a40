"""The page of an existing application's tasks: which it lists, and who may see it."""

from __future__ import annotations

import time

import pytest
from celery import Celery
from commandline import run
from fastapi.testclient import TestClient

from semantik_realtime.cli.discovery import MAX_TASKS, ReceivedTasks
from semantik_realtime.cli.serve import make_app
from semantik_realtime.pytest_plugin import RealtimeFixture


@pytest.fixture
def tasks() -> ReceivedTasks:
    return ReceivedTasks(Celery("shop", set_as_current=False))


def test_the_newest_tasks_are_listed_first_and_celerys_own_not(tasks: ReceivedTasks) -> None:
    for number in range(MAX_TASKS + 1):
        tasks.add({"uuid": f"t{number}", "name": "shop.add"})
    tasks.add({"uuid": "own", "name": "celery.chord_unlock"})
    # A retry is received once more; a worker that was found late sends no name.
    tasks.add({"uuid": "t7", "name": "shop.add"})
    tasks.add({"uuid": "started"})
    newest = tasks.newest()
    assert len(newest) == MAX_TASKS
    assert newest[0] == {"id": "started", "name": ""}
    assert newest[1]["id"] == f"t{MAX_TASKS}"
    assert newest[-1]["id"] == "t2"


def test_a_workflow_is_listed_in_place_of_its_members(tasks: ReceivedTasks) -> None:
    tasks.add({"uuid": "a", "name": "shop.add"})
    for member in ("a", "b", "w"):
        tasks.add_member({"realtime_task": member, "realtime_job": "w"})
        tasks.add({"uuid": member, "name": "shop.add"})
    tasks.add({"uuid": "c", "name": "shop.add"})
    assert tasks.newest() == [{"id": "c", "name": "shop.add"}, {"id": "w", "name": "workflow"}]


def test_everything_is_shown_on_this_machine_and_nothing_under_another_name(
    tasks: ReceivedTasks, realtime: RealtimeFixture
) -> None:
    realtime.publish("job:1", "job_completed")
    tasks.add({"uuid": "1", "name": "shop.add"})
    app = make_app("shop", tasks)
    with TestClient(app, base_url="http://localhost:8000") as client:
        assert client.get("/tasks").json()["tasks"] == [{"id": "1", "name": "shop.add"}]
        assert client.get("/realtime/jobs/1").json()["states"]["1"]["status"] == "completed"
        assert "realtime.js" in client.get("/").text
        # A page of a name that a stranger has made lead to this machine.
        for path in ("/", "/tasks", "/realtime/jobs/1"):
            answer = client.get(path, headers={"host": "rebound.example:8000"})
            assert answer.status_code == 400


def test_a_wrong_application_is_named() -> None:
    done = run("serve", "-A", "no_such_project")
    assert done.returncode == 1
    assert "no Celery application no_such_project" in done.stderr


def test_a_broker_that_is_away_is_shown() -> None:
    broker = "redis://:secret@127.0.0.1:1/0"
    tasks = ReceivedTasks(Celery("shop", broker=broker, set_as_current=False))
    tasks.start()
    try:
        deadline = time.monotonic() + 20
        while not tasks.error:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert tasks.error.startswith("the broker does not answer at redis://***@127.0.0.1:1")
    finally:
        tasks.stop()
