"""The host without other processes: login, access, plugins."""

import logging
from importlib.metadata import EntryPoint

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from installation import PASSWORD, LogIn
from pydantic import SecretStr

from semantik_realtime.demo import app as app_module
from semantik_realtime.demo.app import create_app
from semantik_realtime.demo.hooks import MAX_RECALLED_JOBS, RealtimeHooks
from semantik_realtime.demo.login import LoginAttempts, issue_token
from semantik_realtime.demo.records import Job, User
from semantik_realtime.demo.settings import DemoSettings, NotConfigured


def add_job(client: TestClient, user_id: int, **columns: object) -> str:
    with client.app.state.host.sessions.begin() as session:  # type: ignore[attr-defined]
        job = Job(id=f"job-of-{user_id}", user_id=user_id, label="x", document_ids=[1], **columns)
        session.add(job)
    return job.id


def user_id(client: TestClient) -> int:
    number: int = client.get("/api/me").json()["user"]["id"]
    return number


def test_a_login_sets_a_cookie_that_scripts_cannot_read_and_returns_the_same_token(
    client: TestClient,
) -> None:
    answer = client.post("/api/login", json={"username": "ada", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert cookie.startswith(f"access_token={answer.json()['token']};")
    assert client.get("/api/me").json()["user"]["name"] == "ada"


def test_a_bearer_token_works_like_the_cookie(client: TestClient) -> None:
    token = client.post("/api/login", json={"username": "ada", "password": PASSWORD}).json()
    client.cookies.clear()
    assert client.get("/api/me").status_code == 401
    bearer = {"authorization": f"Bearer {token['token']}"}
    assert client.get("/api/me", headers=bearer).json()["user"] == token["user"]


@pytest.mark.parametrize(("username", "password"), [("ada", "wrong"), ("nobody", PASSWORD)])
def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(
    client: TestClient, username: str, password: str
) -> None:
    client.cookies.clear()
    answer = client.post("/api/login", json={"username": username, "password": password})
    assert (answer.status_code, answer.json()) == (401, {"detail": "wrong name or password"})
    assert "set-cookie" not in answer.headers


def test_after_five_wrong_passwords_even_the_right_one_must_wait(client: TestClient) -> None:
    for _ in range(5):
        client.post("/api/login", json={"username": "ada", "password": "wrong"})
    answer = client.post("/api/login", json={"username": "ada", "password": PASSWORD})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 61


def test_a_login_is_allowed_again_when_the_first_failure_is_older_than_the_window() -> None:
    attempts, source = LoginAttempts(limit=2, window_seconds=10), ("ada", "::1")
    assert attempts.admit(source, 100.0) == 0
    assert attempts.admit(source, 101.0) == 0
    assert attempts.admit(source, 102.0) == 8
    assert attempts.admit(source, 110.5) == 0
    assert attempts.admit(source, 110.6) == pytest.approx(0.4)


@pytest.mark.parametrize("secret", ["k" * 32, "another secret of at least 32 bytes"])
def test_only_tokens_signed_with_our_secret_and_not_expired_are_accepted(
    client: TestClient, secret: str
) -> None:
    lifetime_seconds = -1 if secret == "k" * 32 else 60
    token = issue_token(user_id(client), secret, lifetime_seconds)
    client.cookies.clear()
    bearer = {"authorization": f"Bearer {token}"}
    assert client.get("/api/me", headers=bearer).status_code == 401


@pytest.mark.parametrize(
    "path", ["/api/me", "/api/documents", "/api/folder", "/api/jobs", "/api/search?q=x"]
)
def test_without_a_login_every_route_answers_401(client: TestClient, path: str) -> None:
    client.cookies.clear()
    assert client.get(path).status_code == 401


def test_another_sites_page_cannot_act_in_the_users_name(client: TestClient) -> None:
    del client.headers["x-requested-with"]
    evil = {"origin": "https://evil.example"}
    assert client.post("/api/logout", headers=evil).status_code == 403
    assert client.post("/api/logout").status_code == 403
    assert client.post("/api/logout", headers={"origin": "http://testserver"}).status_code == 204


def test_a_job_of_another_user_gets_the_answer_of_a_missing_job(
    log_in: LogIn, client: TestClient
) -> None:
    eve = log_in("eve")
    job_id = add_job(client, user_id(client))
    assert client.get(f"/api/jobs/{job_id}").status_code == 200
    for answer in (
        eve.get(f"/api/jobs/{job_id}"),
        eve.post(f"/api/jobs/{job_id}/cancel"),
        eve.delete(f"/api/jobs/{job_id}"),
    ):
        missing = eve.get("/api/jobs/none")
        assert (answer.status_code, answer.json()) == (404, missing.json())
    assert eve.get("/api/jobs").json()["jobs"] == []
    assert [job["id"] for job in client.get("/api/jobs").json()["jobs"]] == [job_id]


async def test_users_may_watch_only_their_own_jobs_and_feed(
    log_in: LogIn, client: TestClient
) -> None:
    hooks: RealtimeHooks = client.app.state.realtime_plugins[0]  # type: ignore[attr-defined]
    ada, eve = str(user_id(client)), str(user_id(log_in("eve")))
    job_id = add_job(client, int(ada))
    assert await hooks.authorize(user=ada, topic=f"job:{job_id}", owner=None) is True
    assert await hooks.authorize(user=eve, topic=f"job:{job_id}", owner=eve) is False
    assert await hooks.authorize(user=eve, topic=f"user:{ada}", owner=None) is False
    assert await hooks.authorize(user=eve, topic=f"user:{eve}", owner=None) is True
    assert await hooks.authorize(user=ada, topic="job:unknown", owner=ada) is None
    assert await hooks.authorize(user=ada, topic="collection:1", owner=None) is None


async def test_recall_returns_a_job_in_the_form_of_the_protocol(client: TestClient) -> None:
    hooks: RealtimeHooks = client.app.state.realtime_plugins[0]  # type: ignore[attr-defined]
    ada = user_id(client)
    job_id = add_job(client, ada, total_files=4, processed_files=2, failed_files=1)
    states = await hooks.recall(topic=f"job:{job_id}")
    assert states is not None
    assert states[job_id]["status"] == "queued"
    assert states[job_id]["progress"] == {"current": 3, "total": 4, "unit": "files"}
    assert states[job_id]["fields"]["failed_files"] == 1
    assert await hooks.recall(topic=f"user:{ada}") == states
    assert await hooks.recall(topic="job:unknown") is None


async def test_recall_of_a_feed_returns_running_jobs_and_then_the_newest(
    client: TestClient,
) -> None:
    hooks: RealtimeHooks = client.app.state.realtime_plugins[0]  # type: ignore[attr-defined]
    ada = user_id(client)
    running = add_job(client, ada, status="running", queued_at="2020-01-01T00:00:00.000Z")
    with client.app.state.host.sessions.begin() as session:  # type: ignore[attr-defined]
        for number in range(MAX_RECALLED_JOBS + 5):
            queued_at = f"2026-01-01T00:{number:02}:00.000Z"
            columns = {"label": "x", "document_ids": [], "status": "completed"}
            session.add(Job(id=f"{number}", user_id=ada, queued_at=queued_at, **columns))
    states = await hooks.recall(topic=f"user:{ada}")
    assert states is not None
    newest = [f"{number}" for number in range(MAX_RECALLED_JOBS + 4, 5, -1)]
    assert list(states) == [running, *newest]


def test_a_running_job_without_updates_is_lost(client: TestClient) -> None:
    job_id = add_job(client, user_id(client), status="running", updated_at="2020-01-01T00:00:00Z")
    assert client.get(f"/api/jobs/{job_id}").json()["state"]["status"] == "lost"


def test_a_plugin_that_raises_is_logged_and_the_others_are_set_up(
    settings: DemoSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def entries(group: str) -> list[EntryPoint]:
        assert group == "semantik.webui"
        return [
            EntryPoint("a_missing", "no_such_module:setup", group),
            EntryPoint("b_raises", f"{__name__}:raise_in_setup", group),
            EntryPoint("c_works", f"{__name__}:add_hello", group),
        ]

    monkeypatch.setattr(app_module, "entry_points", entries)
    with caplog.at_level(logging.ERROR):
        app = create_app(settings.model_copy(update={"plugins": True}))
    with TestClient(app) as client:
        assert client.get("/hello").json() == "from the plugin"
        assert client.get("/").status_code == 200
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "name=a_missing" in logged
    assert "name=b_raises" in logged
    assert "name=c_works" not in logged


def raise_in_setup(app: FastAPI) -> None:
    raise RuntimeError("broken")


def add_hello(app: FastAPI) -> None:
    app.add_api_route("/hello", lambda: "from the plugin")


def test_the_first_start_needs_a_password_and_later_ones_do_not(settings: DemoSettings) -> None:
    without = settings.model_copy(update={"password": None})
    with pytest.raises(NotConfigured, match="DEMO_PASSWORD"):
        create_app(without)
    create_app(settings)
    create_app(without)


def test_a_short_signing_secret_is_refused(settings: DemoSettings) -> None:
    with pytest.raises(NotConfigured, match="SEMANTIK_REALTIME_JWT_SECRET"):
        create_app(settings.model_copy(update={"jwt_secret": SecretStr("short")}))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://broker.example:6380/3")
    monkeypatch.setenv("SEMANTIK_REALTIME_JWT_SECRET", "s" * 40)
    monkeypatch.setenv("DEMO_PAUSE_SECONDS", "0.25")
    settings = DemoSettings()
    assert settings.redis_url == "redis://broker.example:6380/3"
    assert settings.require_secret() == "s" * 40
    assert settings.pause_seconds == 0.25


def test_the_page_allows_scripts_and_styles_of_its_own_server_only(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in answer.text
    assert " style=" not in answer.text


def test_passwords_are_not_stored(client: TestClient) -> None:
    with client.app.state.host.sessions() as session:  # type: ignore[attr-defined]
        user = session.get(User, user_id(client))
    assert PASSWORD not in user.password


def test_a_queued_job_that_is_cancelled_ends_at_once_without_a_broker(client: TestClient) -> None:
    job_id = add_job(client, user_id(client))
    job = client.post(f"/api/jobs/{job_id}/cancel").json()
    assert job["state"]["status"] == "cancelled"
    assert job["state"]["ended_at"]


def test_a_running_job_that_is_cancelled_gets_the_request(client: TestClient) -> None:
    job_id = add_job(client, user_id(client), status="running")
    job = client.post(f"/api/jobs/{job_id}/cancel").json()
    assert (job["state"]["status"], job["cancel_requested"]) == ("running", True)


def test_a_job_that_has_ended_is_not_cancelled(client: TestClient) -> None:
    job_id = add_job(client, user_id(client), status="completed")
    job = client.post(f"/api/jobs/{job_id}/cancel").json()
    assert (job["state"]["status"], job["cancel_requested"]) == ("completed", False)


def test_deleting_a_job_deletes_its_events_through_the_plugin(client: TestClient) -> None:
    class Realtime:
        deleted: list[str] = []

        async def delete(self, job_id: str) -> None:
            self.deleted.append(job_id)

    client.app.state.realtime = Realtime()  # type: ignore[attr-defined]
    job_id = add_job(client, user_id(client), status="completed")
    assert client.delete(f"/api/jobs/{job_id}").status_code == 204
    assert Realtime.deleted == [job_id]
    assert client.get(f"/api/jobs/{job_id}").status_code == 404


def test_a_job_that_cannot_be_queued_is_deleted(client: TestClient) -> None:
    answer = client.post("/api/jobs", json={"all": True})
    assert answer.status_code == 503
    assert client.get("/api/jobs").json()["jobs"] == []
