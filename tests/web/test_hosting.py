"""How an application gets the routes, and that its own life goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from importlib.metadata import entry_points

import pytest
from fastapi import APIRouter, FastAPI
from fleet import (
    Compat,
    Native,
    Publisher,
    environment,
    make_settings,
    serve,
    site_of,
    token,
    until,
)
from starlette.testclient import TestClient

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendUnavailable, ConfigError
from semantik_realtime.hookspecs import Credentials, hookimpl
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import RedisServer, free_port, running, valkey_program


async def test_the_hosts_lifespan_and_ours_both_run(
    settings: Settings, publisher: Publisher
) -> None:
    happened: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        happened.append("host begins")
        yield {"from": "host"}
        happened.append(f"host ends, ours is over: {rt.web.hub._loop is None}")

    app = FastAPI(lifespan=lifespan)
    rt = Realtime(settings).install(app)
    assert app.state.realtime is rt
    await publisher.publish("job:1", 1)
    async with serve(app) as site:
        assert happened == ["host begins"]
        async with Native(site, "job:1") as client:
            await client.synced()
    assert happened == ["host begins", "host ends, ours is over: True"]


async def test_the_hosts_start_and_stop_functions_still_run(settings: Settings) -> None:
    happened: list[str] = []
    app = FastAPI(
        on_startup=[lambda: happened.append("start")], on_shutdown=[lambda: happened.append("stop")]
    )
    Realtime(settings).install(app)
    async with serve(app):
        assert happened == ["start"]
    assert happened == ["start", "stop"]


async def test_a_router_with_the_hosts_rules_and_prefix(
    settings: Settings, publisher: Publisher
) -> None:
    async def authenticate(credentials: Credentials) -> str | None:
        return credentials.headers.get("x-user")

    def authorize(user: str, topic: str, owner: str | None) -> bool | None:
        return (owner == "8" and user == "guest") or None

    app = FastAPI()
    rt = Realtime(Settings(**{**settings.model_dump(), "jwt_secret": None}))
    inner = APIRouter()
    inner.include_router(rt.router(authenticate=authenticate, authorize=authorize))
    app.include_router(inner, prefix="/api")
    await publisher.publish("job:1", 1, owner="8")
    await publisher.publish("job:2", 1, owner="9")
    async with serve(app) as site, site.client() as http:
        for job, status in (("1", 200), ("2", 404)):
            path = f"/api/realtime/jobs/{job}"
            assert (await http.get(path, headers={"X-User": "guest"})).status_code == status
            assert (await http.get(path)).status_code == 401
        url = site.compat("1", "/api/ws/jobs/{}")
        headers = {"additional_headers": {"X-User": "guest"}}
        async with Compat(url, user=None, **headers) as browser:
            await browser.wait_for("current_state")


async def test_the_entry_point_sets_an_application_up_with_the_hosts_plugins(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    class Rules:
        @hookimpl
        def authenticate(self, credentials: Credentials) -> str:
            return "7"

    [entry] = entry_points(group="semantik.webui", name="semantik_realtime")
    app = FastAPI()
    app.state.realtime_plugins = [Rules()]
    entry.load()(app)
    await publisher.publish("job:1", 1)
    async with serve(app) as site, Native(site, "job:1", query="") as client:
        await client.synced()


async def test_a_mounted_application_works_though_its_lifespan_never_runs(
    settings: Settings, publisher: Publisher
) -> None:
    inner, outer = FastAPI(), FastAPI()
    rt = Realtime(settings).install(inner)
    outer.mount("/inside", inner)
    await publisher.publish("job:1", 1)
    async with serve(outer) as site:
        browser = Compat(site.compat("1", "/inside/ws/jobs/{}"))
        async with browser, site.client() as http:
            await browser.wait_for("current_state")
            assert (await http.get("/inside/realtime/jobs/1")).status_code == 200
            await publisher.publish("job:1", 1)
            await browser.wait_for("step", 2)
            assert rt.web.limiter._renewing is not None
            assert not rt.web.limiter._renewing.done()
        await rt.web.hub.close()
        await rt.web.limiter.close()


@pytest.mark.every_backend
async def test_a_deletion_may_be_the_first_call_in_a_mounted_application(
    settings: Settings,
) -> None:
    inner, outer = FastAPI(), FastAPI()
    rt = Realtime(settings).install(inner)
    outer.mount("/inside", inner)
    async with serve(outer) as site:
        await rt.publish("job:1", "step", state={"status": "running"}, owner="7")
        assert await rt.delete("1") is True
        receipt = await rt.publish("job:2", "step", state={"status": "running"}, owner="7")
        assert receipt.outcome is Outcome.APPENDED
        # The reader that it opened is the one that serves.
        site.root = "/inside"
        async with Native(site, "user:7", "job:2") as client:
            await client.synced()
            assert client.views["user:7"].offset == 1
            # From a thread with a loop of its own too, and nobody notices.
            assert await asyncio.to_thread(asyncio.run, rt.delete("2")) is True
            await client.has("user:7", 2)
            await client.wait_for("gone")
            assert client.connections == 1
        await rt.web.hub.close()
        await rt.web.limiter.close()
        rt.close()


@pytest.mark.every_backend
def test_a_script_may_delete_and_leaves_nothing_open(settings: Settings) -> None:
    rt = Runtime(settings)

    async def work(rt: Runtime) -> list[bool]:
        for job in "123":
            await rt.publish(f"job:{job}", "step", state={"status": "running"}, owner="7")
        return await asyncio.gather(*(rt.delete(job) for job in "1234"))

    assert asyncio.run(work(rt)) == [True, True, True, False]
    # Nobody has opened it again, which says nothing of the backend.
    with pytest.raises(BackendUnavailable, match="not open"):
        asyncio.run(rt.backend.tops(["job:1"]))
    receipt = asyncio.run(rt.publish("job:5", "step", state={"status": "running"}, owner="7"))
    assert receipt.outcome is Outcome.APPENDED
    assert rt.close()
    del rt
    gc.collect()


def test_one_application_under_several_event_loops_one_after_the_other(
    settings: Settings,
) -> None:
    app = FastAPI()
    rt = Realtime(settings).install(app)

    @app.post("/publish")
    async def publish() -> None:
        await rt.publish("job:1", "step", state={"status": "running"}, owner="7")

    def use(client: TestClient, offset: int) -> None:
        with client.websocket_connect(f"/ws/jobs/1?token={token()}") as browser:
            assert browser.receive_json()["type"] == "current_state"
            for _ in range(offset):
                assert browser.receive_json()["replayed"]
            client.post("/publish")
            assert browser.receive_json()["id"].split(".")[1] == str(offset + 1)
        with client.websocket_connect(f"/realtime/ws?token={token()}") as native:
            assert native.receive_json()["op"] == "welcome"
            native.send_json({"op": "subscribe", "topics": {"job:1": None}})
            assert native.receive_json()["offset"] == offset + 1

    with TestClient(app) as client:
        client.post("/publish")
        use(client, 1)
    with TestClient(app) as client:
        use(client, 2)
        assert client.get("/realtime/health").status_code == 200
    rt.close()


# The loops end without a word, so nobody can close what belonged to them.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_the_lifespan_every_request_may_have_an_event_loop_of_its_own(
    settings: Settings,
) -> None:
    app = FastAPI()
    rt = Realtime(settings).install(app)
    asyncio.run(rt.publish("job:1", "step", state={"status": "running"}, owner="7"))
    client = TestClient(app)
    for _ in range(3):
        headers = {"Authorization": f"Bearer {token()}"}
        assert client.get("/realtime/jobs/1", headers=headers).json()["offset"] == 1
        with client.websocket_connect(f"/ws/jobs/1?token={token()}") as browser:
            assert browser.receive_json()["type"] == "current_state"
    with TestClient(app) as client:
        assert client.get("/realtime/jobs/1", headers=headers).json()["offset"] == 1
    rt.close()
    del client, app, rt
    gc.collect()


async def test_the_server_starts_without_a_backend_and_serves_when_it_comes(
    server_url: object,
) -> None:
    server = RedisServer(valkey_program(), port=free_port())
    settings = make_settings(server.url, timeout_seconds=2)
    async with site_of(settings) as site, Native(site, "user:7") as client:
        await client.wait_for("welcome")
        await client.wait_for("degraded")
        assert not client.syncs
        publisher = Publisher(settings)
        publisher.emit("user:7")
        with running(server):
            await client.synced()
            await client.has("user:7", 1, 20)
            await client.wait_for("restored")
            await publisher.publish("user:7", 3)
            await client.has("user:7", 4)
            assert client.connections == 1
            assert client.views["user:7"].states["7"]["progress"]["current"] == 4
            publisher.close()
            await client.close()
            await until(lambda: not site.rt.web.hub.connections)


async def test_a_dead_peer_is_found_by_the_servers_ping(
    settings: Settings, publisher: Publisher
) -> None:
    app = FastAPI()
    rt = Realtime(settings).install(app)
    await publisher.publish("job:1", 1)
    async with (
        serve(app, ws_ping_interval=0.3, ws_ping_timeout=0.3) as site,
        Native(site, "job:1") as alive,
    ):
        dead = Native(site, "job:1")
        await dead.open()
        await dead.synced()
        await alive.synced()
        assert dead.socket is not None
        dead.socket.transport.pause_reading()
        hub = rt.web.hub
        # Old versions of uvicorn wait for the peer to close, too.
        await until(lambda: len(hub.connections) == 1, 40)
        assert alive.closed is None
        dead.socket.transport.abort()
        await dead.close()


@pytest.mark.parametrize("comes_late", [False, True])
async def test_what_the_backend_may_lose_is_said_once_when_it_is_there(
    comes_late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    server = RedisServer(valkey_program(), options=options)
    settings = make_settings(server.url, start_tries=1)

    def said() -> list[str]:
        lines = [(record.levelname, record.getMessage()) for record in caplog.records]
        return [line for level, line in lines if level == "WARNING" and line.startswith("backend:")]

    with running(server):
        if comes_late:
            server.stop()
        async with site_of(settings) as site, site.client() as http:
            if comes_late:
                await until(lambda: site.rt.web.outage.since)
                assert said() == []
                await asyncio.to_thread(server.start)
            await until(lambda: len(said()) >= 2)
            warnings = (await http.get("/realtime/health")).json()["backend"]["warnings"]
            assert said() == [f"backend: {warning}" for warning in warnings]
            assert "allkeys-lru" in said()[0]
            assert "appendonly yes" in said()[1]
            # It goes and comes again, and that is no news.
            await asyncio.to_thread(server.stop)
            await until(lambda: site.rt.web.outage.since)
            await asyncio.to_thread(server.start)
            await until(lambda: not site.rt.web.outage.since)
            assert len(said()) == 2


@pytest.mark.parametrize("path", ["/ws/jobs", "/ws/{user}/{id}"])
def test_a_compat_path_without_a_job_is_refused(path: str) -> None:
    rt = Realtime(make_settings("redis://127.0.0.1:1/0", compat_path=path))
    with pytest.raises(ConfigError, match=r"needs \{job_id\}"):
        rt.router()
