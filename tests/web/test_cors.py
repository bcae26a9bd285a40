"""Pages of other origins: an allowed one may read every answer of HTTP, another one none."""

from __future__ import annotations

import pytest
from clients import SseClient
from configuration import token
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from publisher import Publisher
from starlette.middleware.cors import CORSMiddleware
from web_servers import InProcessServer, serve

from semantik_realtime import Realtime
from semantik_realtime.config import Settings

PAGE, OTHER = "https://page.example", "https://other.example"
PATHS = (
    "/realtime/jobs/1",
    "/realtime/jobs/1/history",
    "/realtime/jobs/none",
    "/realtime/health",
    "/realtime/static/realtime.js",
    "/realtime/static/none.js",
)
SETTINGS = {"allowed_origins": [PAGE]}


@pytest.mark.parametrize("path", PATHS)
async def test_an_allowed_page_may_read_an_answer_and_its_cookies_are_accepted(
    web_server: InProcessServer, publisher: Publisher, path: str
) -> None:
    await publisher.publish("job:1", 1)
    async with web_server.http_client() as http:
        answer = await http.get(path, headers={"Origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-expose-headers"] == "ETag"
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", PATHS)
async def test_another_page_may_not_and_no_cache_mixes_the_two(
    web_server: InProcessServer, publisher: Publisher, path: str
) -> None:
    await publisher.publish("job:1", 1)
    async with web_server.http_client() as http:
        for headers in ({"Origin": OTHER}, {"Origin": "null"}, {}):
            answer = await http.get(path, headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", [*PATHS, "/realtime/events", "/realtime/jobs/1/events"])
async def test_a_preflight_is_answered_without_a_credential(settings: Settings, path: str) -> None:
    # The browser sends no credential with it, so no dependency of the host may be called.
    app = FastAPI(dependencies=[Depends(HTTPBearer())])
    Realtime(settings).install(app)
    asks = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization,last-event-id",
    }
    async with serve(app) as web_server, web_server.http_client() as http:
        del http.headers["Authorization"]
        allowed = await http.options(path, headers={"Origin": PAGE, **asks})
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert allowed.headers["access-control-allow-methods"] == "GET, POST"
        assert allowed.headers["access-control-allow-headers"] == "authorization,last-event-id"
        assert "Origin" in allowed.headers["vary"]
        refused = await http.options(path, headers={"Origin": OTHER, **asks})
        assert refused.status_code == 403
        assert not [name for name in refused.headers if name.startswith("access-control")]


async def test_a_stream_begins_for_an_allowed_page_alone(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    bearer = {"Authorization": f"Bearer {token()}"}
    async with SseClient(web_server, "job:1", headers={**bearer, "Origin": PAGE}) as stream:
        await stream.wait_synced()
        assert stream.answer is not None
        assert stream.answer.headers["access-control-allow-origin"] == PAGE
    async with SseClient(web_server, "job:1", headers={**bearer, "Origin": OTHER}) as stream:
        assert stream.status == 403
        assert stream.answer is not None
        assert "access-control-allow-origin" not in stream.answer.headers


async def test_where_every_page_is_allowed_none_may_use_the_users_cookies(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    app = FastAPI()
    Realtime(settings.model_copy(update={"allowed_origins": ["*"]})).install(app)
    async with serve(app) as web_server, web_server.http_client() as http:
        answer = await http.get("/realtime/jobs/1", headers={"Origin": OTHER})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origins", [["*"], [PAGE], [OTHER]])
async def test_beside_the_hosts_own_middleware_each_header_is_sent_once(
    settings: Settings, publisher: Publisher, origins: list[str]
) -> None:
    await publisher.publish("job:1", 1)
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=origins, allow_credentials=True)
    Realtime(settings).install(app)
    async with serve(app) as web_server, web_server.http_client() as http:
        answer = await http.get("/realtime/jobs/1", headers={"Origin": PAGE})
        assert len(answer.headers.get_list("access-control-allow-origin")) == 1
        assert len(answer.headers.get_list("access-control-allow-credentials")) == 1


async def test_an_unknown_path_below_ours_is_still_not_found(web_server: InProcessServer) -> None:
    async with web_server.http_client() as http:
        assert (await http.get("/realtime/none")).status_code == 404
