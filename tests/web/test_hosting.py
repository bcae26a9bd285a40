"""How an application gets the routes, and how its own lifespan goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from importlib.metadata import entry_points

import pytest
from clients import CompatClient, NativeClient
from configuration import environment, make_settings, token
from fastapi import APIRouter, FastAPI
from publisher import Publisher
from starlette.testclient import TestClient
from waiting import until
from web_servers import serve, serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendUnavailable, ConfigError
from semantik_realtime.hookspecs import Credentials, hookimpl
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import RedisServer, free_port, running, valkey_program


async def test_the_lifespans_of_the_host_and_of_the_router_both_run(
    settings: Settings, publisher: Publisher
) -> None:
    happened: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        happened.append("host begins")
        yield {"from": "host"}
        happened.append(f"host ends, hub is closed: {rt.web.hub.loop is None}")

    app = FastAPI(lifespan=lifespan)
    rt = Realtime(settings).install(app)
    assert app.state.realtime is rt
    await publisher.publish("job:1", 1)
    async with serve(app) as web_server:
        assert happened == ["host begins"]
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_synced()
    assert happened == ["host begins", "host ends, hub is closed: True"]


async def test_the_hosts_start_and_stop_functions_still_run(settings: Settings) -> None:
    happened: list[str] = []
    app = FastAPI(
        on_startup=[lambda: happened.append("start")], on_shutdown=[lambda: happened.append("stop")]
    )
    Realtime(settings).install(app)
    async with serve(app):
        assert happened == ["start"]
    assert happened == ["start", "stop"]


async def test_a_router_applies_the_hosts_rules_under_the_hosts_prefix(
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
    async with serve(app) as web_server, web_server.http_client() as http:
        for job, status in (("1", 200), ("2", 404)):
            path = f"/api/realtime/jobs/{job}"
            assert (await http.get(path, headers={"X-User": "guest"})).status_code == status
            assert (await http.get(path)).status_code == 401
        url = web_server.compat_url("1", "/api/ws/jobs/{}")
        headers = {"additional_headers": {"X-User": "guest"}}
        async with CompatClient(url, user=None, **headers) as browser:
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
    async with serve(app) as web_server, NativeClient(web_server, "job:1", query="") as client:
        await client.wait_synced()


async def test_a_mounted_application_works_though_its_lifespan_never_runs(
    settings: Settings, publisher: Publisher
) -> None:
    inner, outer = FastAPI(), FastAPI()
    rt = Realtime(settings).install(inner)
    outer.mount("/inside", inner)
    await publisher.publish("job:1", 1)
    async with serve(outer) as web_server:
        browser = CompatClient(web_server.compat_url("1", "/inside/ws/jobs/{}"))
        async with browser, web_server.http_client() as http:
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
    async with serve(outer) as web_server:
        await rt.publish("job:1", "step", state={"status": "running"}, owner="7")
        assert await rt.delete("1") is True
        receipt = await rt.publish("job:2", "step", state={"status": "running"}, owner="7")
        assert receipt.outcome is Outcome.APPENDED
        # The deletion has opened the reader that now serves the connections.
        web_server.root = "/inside"
        async with NativeClient(web_server, "user:7", "job:2") as client:
            await client.wait_synced()
            assert client.views["user:7"].offset == 3
            # A deletion in a thread with a loop of its own disturbs no connection.
            assert await asyncio.to_thread(asyncio.run, rt.delete("2")) is True
            await client.wait_for_offset("user:7", 4)
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
    # A backend that is not open counts as no failure of the backend.
    with pytest.raises(BackendUnavailable, match="not open"):
        asyncio.run(rt.backend.tops(["job:1"]))
    receipt = asyncio.run(rt.publish("job:5", "step", state={"status": "running"}, owner="7"))
    assert receipt.outcome is Outcome.APPENDED
    assert rt.close()
    del rt
    gc.collect()


def test_an_application_works_on_several_event_loops_one_after_the_other(
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


# Without a lifespan no code runs before a loop ends, so its sockets are left to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_the_lifespan_each_request_may_run_on_its_own_event_loop(
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


async def test_the_server_starts_without_a_backend_and_serves_once_it_answers(
    server_url: object,
) -> None:
    server = RedisServer(valkey_program(), port=free_port())
    settings = make_settings(server.url, timeout_seconds=2)
    async with serve_realtime(settings) as web_server, NativeClient(web_server, "user:7") as client:
        await client.wait_for("welcome")
        await client.wait_for("degraded")
        assert not client.syncs
        publisher = Publisher(settings)
        publisher.emit("user:7")
        with running(server):
            await client.wait_synced()
            await client.wait_for_offset("user:7", 1, 20)
            await client.wait_for("restored")
            await publisher.publish("user:7", 3)
            await client.wait_for_offset("user:7", 4)
            assert client.connections == 1
            assert client.views["user:7"].states["7"]["progress"]["current"] == 4
            publisher.close()
            await client.close()
            await until(lambda: not web_server.rt.web.hub.connections)


async def test_a_dead_peer_is_found_by_the_servers_ping(
    settings: Settings, publisher: Publisher
) -> None:
    app = FastAPI()
    rt = Realtime(settings).install(app)
    await publisher.publish("job:1", 1)
    async with (
        serve(app, ws_ping_interval=0.3, ws_ping_timeout=0.3) as web_server,
        NativeClient(web_server, "job:1") as alive,
    ):
        dead = NativeClient(web_server, "job:1")
        await dead.open()
        await dead.wait_synced()
        await alive.wait_synced()
        assert dead.socket is not None
        dead.socket.transport.pause_reading()
        hub = rt.web.hub
        # Old versions of uvicorn also wait for the client's close frame.
        await until(lambda: len(hub.connections) == 1, 40)
        assert alive.closed is None
        dead.socket.transport.abort()
        await dead.close()


@pytest.mark.parametrize("starts_late", [False, True])
async def test_the_backends_warnings_are_logged_once_when_it_answers(
    starts_late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    server = RedisServer(valkey_program(), options=options)
    settings = make_settings(server.url)

    def warned() -> list[str]:
        lines = [(record.levelname, record.getMessage()) for record in caplog.records]
        return [line for level, line in lines if level == "WARNING" and line.startswith("backend:")]

    with running(server):
        if starts_late:
            server.stop()
        async with serve_realtime(settings) as web_server, web_server.http_client() as http:
            if starts_late:
                await until(lambda: web_server.rt.web.outage.since)
                assert warned() == []
                await asyncio.to_thread(server.start)
            await until(lambda: len(warned()) >= 2)
            warnings = (await http.get("/realtime/health")).json()["backend"]["warnings"]
            assert warned() == [f"backend: {warning}" for warning in warnings]
            assert "allkeys-lru" in warned()[0]
            assert "appendonly yes" in warned()[1]
            # After another outage the warnings are not logged again.
            await asyncio.to_thread(server.stop)
            await until(lambda: web_server.rt.web.outage.since)
            await asyncio.to_thread(server.start)
            await until(lambda: not web_server.rt.web.outage.since)
            assert len(warned()) == 2


@pytest.mark.parametrize("path", ["/ws/jobs", "/ws/{user}/{id}"])
def test_a_compat_path_without_a_job_is_refused(path: str) -> None:
    rt = Realtime(make_settings("redis://127.0.0.1:1/0", compat_path=path))
    with pytest.raises(ConfigError, match=r"needs \{job_id\}"):
        rt.router()
