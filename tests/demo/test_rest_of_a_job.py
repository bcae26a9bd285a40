"""A job that failed goes on with the documents that it did not read."""

from __future__ import annotations

from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from fastapi.testclient import TestClient
from installation import LogIn

from semantik_realtime.demo import abandoned, routes
from semantik_realtime.demo.abandoned import end_abandoned_jobs, end_killed_job
from semantik_realtime.demo.indexing import run_job
from semantik_realtime.demo.records import Document, Job, Sessions
from semantik_realtime.demo.settings import DemoSettings
from semantik_realtime.pytest_plugin import RealtimeFixture

ERROR = {"type": "WorkerLostError", "message": "signal 9"}


@pytest.fixture
def sessions(client: TestClient) -> Sessions:
    made: Sessions = client.app.state.host.sessions  # type: ignore[attr-defined]
    return made


def add_job(sessions: Sessions, **columns: Any) -> str:
    with sessions.begin() as session:
        documents = [
            Document(user_id=1, origin="folder", name=name, stored=name, size_bytes=1)
            for name in ("bread.md", "letters/anna.txt", "page.html")
        ]
        session.add_all(documents)
        session.flush()
        job = {
            "id": "0b0f51bb-4a4a-4a4a-9a3f-000000000001",
            "user_id": 1,
            "label": "3 documents",
            "document_ids": [document.id for document in documents],
            "total_files": 3,
            "processed_files": 1,
            "attempt": 1,
            "chunks": 1,
            **columns,
        }
        session.add(Job(**job))
    return str(job["id"])


def find(sessions: Sessions, job_id: str) -> Job:
    with sessions() as session:
        job = session.get(Job, job_id)
        assert job is not None
        return job


def test_the_rest_is_a_new_attempt_of_the_job_that_begins_where_the_last_one_ended(
    client: TestClient,
    sessions: Sessions,
    settings: DemoSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = add_job(sessions, status="failed", error=ERROR, ended_at="2026-11-30T08:00:00.000Z")
    started: list[str] = []
    monkeypatch.setattr(routes, "start_index", lambda job_id, **_: started.append(job_id))
    answer = client.post(f"/api/jobs/{job_id}/rest")
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"]["status"] == "queued"
    assert "error" not in answer.json()["state"]
    assert started == [job_id]
    assert client.post(f"/api/jobs/{job_id}/rest").status_code == 409

    assert run_job(job_id, settings, sessions)["processed_files"] == 3
    job = find(sessions, job_id)
    assert (job.status, job.attempt, job.processed_files) == ("completed", 2, 3)
    with sessions() as session:
        names = {one.name: one.status for one in session.query(Document)}
    assert names == {"bread.md": "new", "letters/anna.txt": "indexed", "page.html": "indexed"}


@pytest.mark.parametrize(
    ("columns", "status"),
    [
        ({"status": "running"}, 409),
        ({"status": "completed"}, 409),
        ({"status": "cancelled"}, 409),
        ({"status": "failed", "processed_files": 2, "failed_files": 1}, 409),
        ({"status": "running", "updated_at": "2026-11-30T08:00:00.000Z"}, 200),
        ({"status": "lost"}, 200),
    ],
)
def test_only_a_job_that_failed_and_did_not_read_everything_has_a_rest(
    client: TestClient,
    sessions: Sessions,
    columns: dict[str, Any],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routes, "start_index", lambda *_, **__: None)
    job_id = add_job(sessions, **columns)
    assert client.post(f"/api/jobs/{job_id}/rest").status_code == status


def test_without_a_broker_the_job_stays_as_it_is(client: TestClient, sessions: Sessions) -> None:
    job_id = add_job(sessions, status="failed", error=ERROR, ended_at="2026-11-30T08:00:00.000Z")
    before = find(sessions, job_id).view()
    assert client.post(f"/api/jobs/{job_id}/rest").status_code == 503
    assert find(sessions, job_id).view() == before


def test_the_job_of_another_user_has_no_rest(
    client: TestClient, sessions: Sessions, log_in: LogIn
) -> None:
    job_id = add_job(sessions, status="failed")
    assert log_in("eve").post(f"/api/jobs/{job_id}/rest").status_code == 404


def test_a_job_whose_process_was_killed_has_failed_in_the_record_too(
    sessions: Sessions, settings: DemoSettings
) -> None:
    job_id = add_job(sessions, status="running")
    end_killed_job(job_id, WorkerLostError("signal 9"), settings)
    state = find(sessions, job_id).state()
    assert state["status"] == "failed"
    assert state["error"] == ERROR
    assert "ended_at" in state


def test_jobs_of_a_killed_worker_are_ended_as_lost_and_published(
    sessions: Sessions,
    settings: DemoSettings,
    monkeypatch: pytest.MonkeyPatch,
    realtime: RealtimeFixture,
) -> None:
    monkeypatch.setattr(abandoned, "LOST_AFTER_SECONDS", -1)
    job_id = add_job(sessions, status="running", updated_at="2026-11-30T08:00:00.000Z")
    end_abandoned_jobs(settings, realtime.runtime)
    assert find(sessions, job_id).status == "lost"
    assert realtime.owner(job_id) == "1"
    for topic in (f"job:{job_id}", "user:1"):
        assert realtime.wait_for(topic, "job_lost")["state"]["status"] == "lost"
    end_abandoned_jobs(settings, realtime.runtime)
    realtime.assert_events(job_id, ["job_lost"])
