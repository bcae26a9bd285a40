"""Applications of many shapes: each serves every route, and their own rules go on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import CompatClient, NativeClient, SseClient, refusal
from configuration import token
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer, OAuth2PasswordBearer
from publisher import Publisher
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from waiting import until
from web_servers import InProcessServer, serve

from semantik_realtime import Realtime
from semantik_realtime.config import Settings

BEARER = {"Authorization": f"Bearer {token()}"}
Host = tuple[FastAPI | Starlette, Realtime, str]


async def with_request(request: Request) -> None:
    """A dependency that FastAPI cannot call for a WebSocket."""


def by_tag(route: APIRoute) -> str:
    return f"{route.tags[0]}-{route.name}"


def installed(app: FastAPI, rt: Realtime) -> Host:
    return rt.install(app) and app, rt, ""


def included(rt: Realtime, **options: Any) -> Host:
    app = FastAPI()
    app.include_router(rt.router(), **options)
    return app, rt, options.get("prefix", "")


def nested(rt: Realtime) -> Host:
    app, inner = FastAPI(dependencies=[Depends(with_request)]), APIRouter(prefix="/v1")
    inner.include_router(rt.router())
    app.include_router(inner, prefix="/api")
    return app, rt, "/api/v1"


def mounted(rt: Realtime) -> Host:
    outer, inner = FastAPI(), FastAPI()
    rt.install(inner)
    outer.mount("/inside", inner)
    return outer, rt, "/inside"


def mounted_in_starlette(rt: Realtime) -> Host:
    inner = FastAPI()
    rt.install(inner)
    return Starlette(routes=[Mount("/inside", inner)]), rt, "/inside"


def after_pages(rt: Realtime) -> Host:
    app = FastAPI()
    app.mount("/", StaticFiles(directory=Path(__file__).parent, html=True))
    return installed(app, rt)


def before_pages(rt: Realtime) -> Host:
    host = installed(FastAPI(), rt)
    host[0].mount("/", StaticFiles(directory=Path(__file__).parent, html=True))
    return host


def after_catch_all(rt: Realtime) -> Host:
    app = FastAPI()

    @app.get("/{path:path}")
    async def page(path: str) -> str:
        return "the page of a route for everything"

    return installed(app, rt)


async def pass_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def with_middleware(middleware: Any, **options: Any) -> Callable[[Realtime], Host]:
    def make(rt: Realtime) -> Host:
        app = FastAPI()
        app.add_middleware(middleware, **options)
        return installed(app, rt)

    return make


HOSTS: dict[str, Callable[[Realtime], Host]] = {
    "operation ids of tags": lambda rt: installed(FastAPI(generate_unique_id_function=by_tag), rt),
    "dependency with a request": lambda rt: installed(
        FastAPI(dependencies=[Depends(with_request)]), rt
    ),
    "HTTPBearer": lambda rt: installed(FastAPI(dependencies=[Depends(HTTPBearer())]), rt),
    "OAuth2PasswordBearer": lambda rt: installed(
        FastAPI(dependencies=[Depends(OAuth2PasswordBearer("token"))]), rt
    ),
    "prefix": lambda rt: included(rt, prefix="/api"),
    "dependency of the router": lambda rt: included(
        rt, prefix="/api", dependencies=[Depends(HTTPBearer())]
    ),
    "router in a router": nested,
    "mounted": mounted,
    "mounted in Starlette": mounted_in_starlette,
    "no redirects": lambda rt: installed(FastAPI(redirect_slashes=False), rt),
    "pages at / before": after_pages,
    "pages at / after": before_pages,
    "a route for everything before": after_catch_all,
    "GZipMiddleware": with_middleware(GZipMiddleware, minimum_size=1),
    "BaseHTTPMiddleware": with_middleware(BaseHTTPMiddleware, dispatch=pass_on),
    "CORSMiddleware": with_middleware(CORSMiddleware, allow_origins=["http://page"]),
    "TrustedHostMiddleware": with_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1"]),
}


@contextlib.asynccontextmanager
async def serving(host: Host, **options: Any) -> AsyncIterator[InProcessServer]:
    app, rt, root = host
    async with serve(app, **options) as web_server:
        web_server.root = root
        yield web_server
        # A mounted application's lifespan never runs.
        await rt.web.hub.close()
        await rt.web.limiter.close()
    rt.close()


@pytest.mark.parametrize("name", HOSTS)
async def test_every_route_works_in(settings: Settings, publisher: Publisher, name: str) -> None:
    host = HOSTS[name](Realtime(settings))
    await publisher.publish("job:1", 1)
    async with serving(host) as web_server:
        await serves_everything(web_server, publisher)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{web_server.port}") as http:
            described = await http.get("/openapi.json")
    if "everything" not in name and not name.startswith("mounted"):
        assert f"{host[2]}/realtime/health" in described.json()["paths"]


async def test_every_route_works_below_the_path_that_a_proxy_removes(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    app = FastAPI()
    async with serving(installed(app, Realtime(settings)), root_path="/sub") as web_server:
        await serves_everything(web_server, publisher)


async def serves_everything(web_server: InProcessServer, publisher: Publisher) -> None:
    """Watch job 1 in every way. The files for browsers lie beside the socket, and are public."""
    compat = CompatClient(web_server.compat_url("1"))
    stream = SseClient(web_server, "job:1", headers={**BEARER, "Accept-Encoding": "gzip"})
    async with NativeClient(web_server, "job:1") as client, compat, stream:
        await client.wait_synced()
        await stream.wait_synced()
        await compat.wait_for("current_state")
        offset = client.views["job:1"].offset
        # One event at a time: a middleware that collects a block would keep it back.
        for number in range(offset + 1, offset + 4):
            await publisher.publish("job:1", 1)
            await stream.wait_for_offset("job:1", number)
            await client.wait_for_offset("job:1", number)
        async with web_server.http_client() as http:
            for path in ("jobs/1", "jobs/1/history", "health"):
                assert (await http.get(f"/realtime/{path}")).status_code == 200, path
            del http.headers["Authorization"]
            script = await http.get("/realtime/static/realtime.js")
            assert script.status_code == 200
            assert script.headers["content-type"].startswith("text/javascript")
            assert (await http.get("/realtime/jobs/1")).status_code in (401, 403)


async def test_a_security_dependency_of_the_host_guards_the_routes_of_http_as_well(
    settings: Settings, publisher: Publisher
) -> None:
    async def with_key(key: str = Depends(APIKeyHeader(name="X-Key"))) -> None:
        if key != "right":
            raise HTTPException(403)

    await publisher.publish("job:1", 1)
    app = FastAPI(dependencies=[Depends(with_key)])
    async with serving(installed(app, Realtime(settings))) as web_server:
        async with web_server.http_client() as http:
            for path in ("jobs/1", "jobs/1/history", "jobs/1/events", "health", "metrics"):
                assert (await http.get(f"/realtime/{path}")).status_code in (401, 403), path
            assert (await http.get("/realtime/jobs/1", headers={"X-Key": "right"})).is_success
        # It cannot guard the sockets, whose own authentication does.
        assert (await refusal(web_server.compat_url("1")))[0] == 1008
        assert (await refusal(web_server.native_url + "?token=wrong"))[0] == 4401


async def test_the_log_names_dependencies_that_are_not_called_for_websockets(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "semantik_realtime")
    app = FastAPI(dependencies=[Depends(HTTPBearer())])
    async with serving(installed(app, Realtime(settings))):
        lines = [line for line in caplog.messages if "not called for WebSockets" in line]
    assert len(lines) == 1


async def test_the_log_names_a_route_of_the_host_that_hides_the_routers(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    app, rt = FastAPI(), Realtime(settings)
    app.mount("/", StaticFiles(directory=Path(__file__).parent), name="pages")
    app.include_router(rt.router())
    async with serving((app, rt, "")):
        lines = [line for line in caplog.messages if line.startswith("web: hidden")]
    assert lines
    assert "'pages'" in lines[0]


async def test_a_route_of_the_host_keeps_its_requests_before_the_routers(
    settings: Settings,
) -> None:
    app, rt = FastAPI(), Realtime(settings)

    @app.get("/realtime/health")
    async def own() -> str:
        return "own"

    app.mount("/", StaticFiles(directory=Path(__file__).parent, html=True))
    async with serving(installed(app, rt)) as web_server, web_server.http_client() as http:
        assert (await http.get("/realtime/health")).json() == "own"
        assert (await http.get("/realtime/static/realtime.js")).is_success
        assert (await http.get("/test_http.py")).is_success


async def test_names_of_routes_leave_those_of_the_host_free(settings: Settings) -> None:
    app, rt = FastAPI(), Realtime(settings)
    installed(app, rt)
    app.mount("/assets", StaticFiles(directory=Path(__file__).parent), name="static")

    @app.get("/my-health", name="health")
    async def health() -> None: ...

    assert app.url_path_for("health") == "/my-health"
    assert app.url_path_for("static", path="a.js") == "/assets/a.js"
    rt.close()


async def test_a_reader_that_leaves_is_noticed_behind_a_middleware(
    settings: Settings, publisher: Publisher
) -> None:
    host = with_middleware(BaseHTTPMiddleware, dispatch=pass_on)(Realtime(settings))
    await publisher.publish("job:1", 1)
    async with serving(host) as web_server:
        async with SseClient(web_server, "job:1") as stream:
            await stream.wait_synced()
        await until(lambda: not host[1].web.hub.connections)
