"""Snapshot, history and health over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from clients import NativeClient
from configuration import make_settings, token
from publisher import Publisher, one_draft
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Snapshot, hookimpl
from semantik_realtime.testing.servers import free_port


@pytest.mark.every_row
async def test_the_etag_is_the_cursor_and_saves_the_body(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    async with web_server.http_client() as http:
        first = await http.get("/realtime/jobs/1")
        assert first.status_code == 200
        body = first.json()
        assert body["topic"] == "job:1"
        assert body["offset"] == 3
        assert body["states"]["1"]["progress"]["current"] == 3
        assert first.headers["etag"] == f'"{body["cursor"]}"'
        etag = first.headers["etag"]
        for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = await http.get("/realtime/jobs/1", headers={"If-None-Match": condition})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == etag
        await publisher.publish("job:1", 1)
        fresh = await http.get("/realtime/jobs/1", headers={"If-None-Match": etag})
        assert fresh.status_code == 200
        assert fresh.json()["offset"] == 4
    async with NativeClient(web_server, "job:1") as client:
        client.views["job:1"].cursor = fresh.json()["cursor"]
        client.views["job:1"].offset = 4
        await client.wait_synced()
        assert client.syncs[0]["mode"] == "replay"


@pytest.mark.every_row
async def test_history_comes_in_pages_oldest_first(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 25)
    seen, after, pages = [], 0, 0
    async with web_server.http_client() as http:
        while True:
            answer = await http.get(
                "/realtime/jobs/1/history", params={"after": after, "limit": 10}
            )
            page = answer.json()
            seen += [event["data"]["i"] for event in page["events"]]
            pages += 1
            if not page["more"]:
                break
            after = page["events"][-1]["offset"]
        snapshot = (await http.get("/realtime/jobs/1")).json()
    assert seen == list(range(25))
    assert pages == 3
    assert snapshot["cursor"].startswith(page["epoch"] + ".")


@pytest.mark.parametrize(
    "query", ["limit=-1", "limit=1001", "limit=ten", "after=1.5", "after=²", "after=" + "9" * 5000]
)
async def test_a_wrong_parameter_is_422(
    web_server: InProcessServer, publisher: Publisher, query: str
) -> None:
    await publisher.publish("job:1", 1)
    async with web_server.http_client() as http:
        answer = await http.get(f"/realtime/jobs/1/history?{query}")
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_input"


async def test_a_foreign_job_and_an_unknown_one_get_the_same_404(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1, owner="8")
    async with web_server.http_client() as http:
        for path in ("/realtime/jobs/{}", "/realtime/jobs/{}/history"):
            foreign, unknown = [await http.get(path.format(job)) for job in ("1", "2")]
            assert foreign.status_code == unknown.status_code == 404
            assert foreign.content == unknown.content
            both = [dict(answer.headers) for answer in (foreign, unknown)]
            for headers in both:
                headers.pop("date", None)
            assert both[0] == both[1]


@pytest.mark.parametrize(
    "credential", [None, "rubbish", token(seconds=-1)], ids=["none", "unreadable", "expired"]
)
async def test_a_request_without_a_valid_credential_gets_401(
    web_server: InProcessServer, publisher: Publisher, credential: str
) -> None:
    await publisher.publish("job:1", 1)
    headers = {"Authorization": f"Bearer {credential}"} if credential else {"Authorization": ""}
    async with web_server.http_client() as http:
        for path in ("/realtime/jobs/1", "/realtime/jobs/1/history", "/realtime/jobs/2"):
            answer = await http.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_health_reports_a_healthy_server(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with web_server.http_client() as http, NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        answer = await http.get("/realtime/health")
    assert answer.status_code == 200
    health = answer.json()
    assert health["backend"].pop("server").startswith("valkey")
    assert health["backend"].pop("name") == "redis"
    assert health == {
        "live": True,
        "ready": True,
        "degraded_since": None,
        "spool": {"drafts": 0, "bytes": 0},
        "backend": {"reachable": True, "warnings": []},
        "connections": 1,
        "unauthenticated": 0,
        "topics": 1,
    }


async def test_without_a_backend_requests_are_answered_with_503(settings: Settings) -> None:
    away = make_settings(f"redis://127.0.0.1:{free_port()}/0")
    async with serve_realtime(away) as web_server, web_server.http_client() as http:
        for path in ("/realtime/jobs/1", "/realtime/jobs/1/history"):
            answer = await http.get(path)
            assert answer.status_code == 503
            assert answer.json()["code"] == "backend_unavailable"
        assert (
            await http.get("/realtime/jobs/1", headers={"Authorization": ""})
        ).status_code == 401


@pytest.mark.parametrize(("is_ready", "status"), [(True, 200), (False, 503)])
async def test_a_setting_decides_whether_a_server_without_its_backend_is_ready(
    is_ready: bool, status: int
) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    away = make_settings(url, degraded_is_ready=is_ready)
    async with serve_realtime(away) as web_server, web_server.http_client() as http:
        await web_server.rt.publish("job:1", "note")
        answer = await http.get("/realtime/health")
    assert answer.status_code == status
    health = answer.json()
    assert health["live"] is True
    assert health["ready"] is is_ready
    assert health["degraded_since"].endswith("Z")
    assert health["backend"]["reachable"] is False
    assert health["spool"]["drafts"] == 1
    assert health["spool"]["bytes"] > 0


async def test_delayed_drafts_and_the_hosts_record_answer_without_a_backend() -> None:
    class Record:
        @hookimpl
        def recall(self, topic: str) -> dict[str, Any]:
            return {
                "1": {"status": "running", "attempt": 1, "progress": {"current": 3, "total": 9}},
                "2": {"status": "completed", "attempt": 1},
            }

        @hookimpl
        def authorize(self, user: str, topic: str, owner: str | None) -> bool:
            return topic == "job:1"

    away = make_settings(f"redis://127.0.0.1:{free_port()}/0")
    async with (
        serve_realtime(away, plugins=[Record()]) as web_server,
        web_server.http_client() as http,
    ):
        for key in ("1", "2"):
            state = {"status": "cancelled" if key == "1" else "running", "attempt": 1}
            receipt = await web_server.rt.publish("job:1", "note", key=key, state=state)
            assert receipt.outcome is Outcome.WAITING
        await until(lambda: web_server.rt.backend.fails_writes)
        answer = await http.get("/realtime/jobs/1")
        assert answer.status_code == 200
        body = answer.json()
        assert (body["provisional"], body["cursor"], body["offset"]) == (True, None, 0)
        # For each key the state that is further ahead.
        statuses = {key: state["status"] for key, state in body["states"].items()}
        assert statuses == {"1": "cancelled", "2": "completed"}
        # Whether the user may watch is unknown, so the refusal is temporary.
        assert (await http.get("/realtime/jobs/2")).status_code == 503


async def test_a_read_that_fails_is_not_answered_with_delayed_states_of_another_owner(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publisher.publish("job:1", 1)

    async def fail(topic: str) -> Snapshot:
        raise BackendUnavailable("away since the owner was read")

    monkeypatch.setattr(web_server.rt.web.hub, "read", fail)
    draft = one_draft("job:1", "note", key="1", state={"status": "running"}, owner="8")
    web_server.rt.web.outage.add_delayed([draft])
    async with web_server.http_client() as http:
        assert (await http.get("/realtime/jobs/1")).status_code == 503
        mine = one_draft("job:2", "note", key="2", state={"status": "running"}, owner="7")
        await publisher.publish("job:2", 1)
        web_server.rt.web.outage.add_delayed([mine])
        assert (await http.get("/realtime/jobs/2")).json()["provisional"]


async def test_the_browsers_files_are_served_and_nothing_else(web_server: InProcessServer) -> None:
    async with web_server.http_client() as http:
        answer = await http.get("/realtime/static/realtime.js")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/javascript")
        for name in ("hub.py", "..%2fhub.py", "%2e%2e", "no.js", ".js", "realtime.js%00"):
            assert (await http.get(f"/realtime/static/{name}")).status_code == 404, name
