"""A peer that acknowledges nothing any more gives its place back soon, on each wire."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from clients import CompatClient, NativeClient, SseClient
from configuration import make_settings, token
from fastapi import FastAPI, Request
from publisher import Publisher
from uvicorn.config import WS_PROTOCOLS
from waiting import until
from web_servers import InProcessServer, serve, serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.web.endpoints import peer

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has TCP_USER_TIMEOUT"
)
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
REQUESTS = {
    "sse": f"GET /realtime/events?topic=job:1&token={token()} HTTP/1.1\r\nHost: a\r\n\r\n",
    "compat": f"GET /ws/jobs/1?token={token()} HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n",
}


def user_timeouts(server: InProcessServer) -> list[int]:
    """Return the option of every open socket of the server, in milliseconds."""
    links = [
        connection.transport.get_extra_info("socket")
        for connection in server.server.server_state.connections
    ]
    return [link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for link in links]


async def wait_for_timeout(server: InProcessServer) -> None:
    await until(lambda: 30_000 in user_timeouts(server))


def implementations() -> list[str]:
    """Return uvicorn's WebSocket implementations that are installed."""
    names = {"auto", *WS_PROTOCOLS} - {"none"}
    return sorted(names if importlib.util.find_spec("wsproto") else names - {"wsproto"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("ws", implementations())
async def test_the_kernel_watches_the_socket_of_each_wire(ws: str) -> None:
    app = FastAPI()
    rt = Realtime(make_settings("", backend="memory")).install(app)
    async with serve(app, ws=ws) as server:
        await Publisher(rt.settings, rt).publish("job:1", 1)
        async with NativeClient(server):
            await wait_for_timeout(server)
        await until(lambda: not user_timeouts(server))
        async with CompatClient(server.compat_url("1")):
            await wait_for_timeout(server)
        await until(lambda: not user_timeouts(server))
        async with SseClient(server, "job:1"):
            await wait_for_timeout(server)


async def test_a_middleware_does_not_hide_the_socket() -> None:
    app = FastAPI()
    rt = Realtime(make_settings("", backend="memory")).install(app)

    @app.middleware("http")
    async def measure(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    @app.middleware("http")
    async def measure_again(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    async with serve(app) as server:
        await Publisher(rt.settings, rt).publish("job:1", 1)
        async with SseClient(server, "job:1"):
            await wait_for_timeout(server)


@contextlib.asynccontextmanager
async def deaf_client(server: InProcessServer, request: str) -> AsyncIterator[None]:
    """Send ``request`` on a socket with the smallest buffer, and never read."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    with contextlib.closing(link):
        link.connect(("127.0.0.1", server.port))
        link.sendall(request.encode())
        yield


@pytest.fixture
def settings() -> Settings:
    return make_settings("", backend="memory")


@pytest.mark.parametrize("wire", REQUESTS)
async def test_a_place_is_free_again_although_nothing_more_is_sent(
    wire: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are in the kernel, so no send of the server waits for them."""
    monkeypatch.setattr(peer, "USER_TIMEOUT_SECONDS", 1.0)
    async with serve_realtime(settings) as server:
        hub = server.rt.web.hub
        await Publisher(settings, server.rt).publish("job:1", 1)
        async with deaf_client(server, REQUESTS[wire]):
            await until(lambda: hub.connections)
            await server.rt.publish("job:1", "log", key="1", data={"text": "x" * 60_000})
            [connection] = hub.connections
            await until(lambda: connection.outbox_bytes == 0)
            await until(lambda: not hub.connections, 30)
            await until(lambda: not user_timeouts(server), 10)
            # Counted after its tasks have ended.
            await until(lambda: hub.stats.closed["client"] == 1)
