"""What a page of the demo gets while a job runs. Tasks are eager: no other process runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from installation import PASSWORD

from semantik_realtime.demo.app import create_app
from semantik_realtime.demo.settings import DemoSettings
from semantik_realtime.demo.tasks import celery_app
from semantik_realtime.pytest_plugin import RealtimeFixture


@pytest.fixture
def page(
    settings: DemoSettings, realtime: RealtimeFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """A client of the demo with its plugins, where a task runs when it is sent."""
    monkeypatch.setitem(celery_app.conf, "task_always_eager", True)
    monkeypatch.setenv("DEMO_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("DEMO_DOCUMENTS_DIR", str(settings.documents_dir))
    # What signs the demo's tokens also verifies them in the plugin.
    monkeypatch.setenv("SEMANTIK_REALTIME_JWT_SECRET", settings.require_secret())
    app = create_app(settings.model_copy(update={"plugins": True}))
    with TestClient(app, headers={"x-requested-with": "tests"}) as client:
        answer = client.post("/api/login", json={"username": "ada", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        yield client
    app.state.host.sessions.kw["bind"].dispose()


def test_each_document_is_reported_with_its_result(
    page: TestClient, realtime: RealtimeFixture
) -> None:
    paths = ["bread.md", "latin.txt"]
    job = page.post("/api/jobs", json={"paths": paths}).json()["id"]
    realtime.assert_events(
        job,
        [
            "job_started",
            ("file_processing", {"file": "bread.md"}),
            ("file_completed", {"file": "bread.md", "chunks": 1}),
            ("file_processing", {"file": "latin.txt"}),
            ("file_failed", {"file": "latin.txt", "reason": "not UTF-8 text (byte 1)"}),
            "job_completed",
        ],
    )
    fields = realtime.state(job)["fields"]
    assert (fields["processed_files"], fields["failed_files"]) == (1, 1)


def test_the_plugin_serves_the_events_to_the_user_who_started_the_job(
    page: TestClient, realtime: RealtimeFixture
) -> None:
    job = page.post("/api/jobs", json={"paths": ["bread.md"]}).json()["id"]
    assert realtime.owner(job) == str(page.get("/api/me").json()["user"]["id"])
    history = page.get(f"/realtime/jobs/{job}/history").json()["events"]
    assert history == realtime.events(job)
    assert page.get(f"/api/jobs/{job}").json()["state"]["status"] == "completed"
    page.cookies.clear()
    assert page.get(f"/realtime/jobs/{job}").status_code == 401


def test_an_error_of_the_index_fails_the_job(
    page: TestClient, realtime: RealtimeFixture, settings: DemoSettings
) -> None:
    settings.search_index(1).mkdir(parents=True)
    job = page.post("/api/jobs", json={"paths": ["bread.md"]}).json()["id"]
    realtime.wait_for(job, "failed")
    assert realtime.state(job)["error"]["type"] == "OperationalError"
