"""WebSockets without a credential: few at once, for a short time; they shut nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
from clients import NativeClient, refusal
from configuration import make_settings, token
from metrics_page import METRICS_SETTINGS, scrape
from waiting import until
from web_servers import InProcessServer, serve_realtime
from websockets.asyncio.client import ClientConnection, connect

from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Credentials, hookimpl
from semantik_realtime.web import unauthenticated
from semantik_realtime.web.endpoints import websocket as endpoint

LIMIT = 5


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unauthenticated, "GRACE_SECONDS", 0.3)


@contextlib.asynccontextmanager
async def serving(**given: object) -> AsyncIterator[InProcessServer]:
    given = {"max_unauthenticated": LIMIT, **METRICS_SETTINGS, **given}
    async with serve_realtime(make_settings("", backend="memory", **given)) as server:
        yield server


@contextlib.asynccontextmanager
async def silent(
    server: InProcessServer, count: int, address: str = ""
) -> AsyncIterator[list[ClientConnection]]:
    """Open sockets that send nothing; ``address`` is where a proxy says that they are from."""
    headers = {"X-Forwarded-For": address} if address else {}
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(connect(server.native_url, additional_headers=headers))
            for _ in range(count)
        ]


def closed(sockets: list[ClientConnection]) -> list[int | None]:
    return [socket.close_code for socket in sockets if socket.close_code is not None]


async def test_few_sockets_wait_for_a_credential_and_they_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as server, silent(server, 4 * LIMIT) as sockets:
        await until(lambda: len(closed(sockets)) == 3 * LIMIT)
        assert set(closed(sockets)) == {4429}
        # The oldest have ended.
        assert not closed(sockets[-LIMIT:])
        async with server.http_client() as http:
            assert (await http.get("/realtime/health")).json()["unauthenticated"] == LIMIT
        assert (await scrape(server))["unauthenticated",] == LIMIT
        assert server.rt.web.hub.stats.refused["too_many_connections"] == 3 * LIMIT
        lines = [r for r in caplog.records if "too many wait" in r.getMessage()]
        assert [line.levelno for line in lines] == [logging.WARNING]


async def test_silent_sockets_shut_out_no_client_that_authenticates_at_once() -> None:
    async with serving() as server, silent(server, 4 * LIMIT):
        for _ in range(10):
            async with NativeClient(server, query="") as client:
                await client.send({"op": "auth", "token": token()})
                await client.wait_for("welcome")


async def test_the_silent_sockets_of_one_address_end_none_of_another() -> None:
    async with (
        serving() as server,
        silent(server, 2, "192.0.2.1") as few,
        silent(server, 4 * LIMIT, "192.0.2.2") as many,
    ):
        await until(lambda: len(closed(many)) == 4 * LIMIT - 3)
        assert not closed(few)


async def test_a_handshake_is_refused_while_ten_times_as_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unauthenticated, "GRACE_SECONDS", 60.0)
    async with serving(max_unauthenticated=1) as server:
        async with silent(server, unauthenticated.BURST):
            assert (await refusal(server.native_url))[0] == 503
        async with NativeClient(server) as client:
            await client.wait_for("welcome")


async def test_without_the_first_frame_a_handshake_needs_the_credential() -> None:
    async with serving(auth_frame=False) as server:
        assert (await refusal(server.native_url))[0] == 401
        assert server.rt.web.hub.stats.refused["unauthenticated"] == 1
        assert (await refusal(f"{server.native_url}?token=rubbish"))[0] == 4401
        async with NativeClient(server) as client:
            await client.wait_for("welcome")


class Host:
    """Knows one user by a header; says nothing about others, and sometimes cannot tell."""

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        if credentials.headers.get("x-user") == "unknown":
            raise BackendUnavailable("the database is away")
        return credentials.headers.get("x-user")


async def test_a_user_whom_the_host_knows_needs_no_token_in_the_handshake() -> None:
    settings = make_settings("", backend="memory", auth_frame=False)
    async with serve_realtime(settings, plugins=[Host()]) as server:
        options = {"additional_headers": {"X-User": "7"}}
        async with NativeClient(server, query="", **options) as client:
            await client.wait_for("welcome")
        options = {"additional_headers": {"X-User": "unknown"}}
        assert (await refusal(server.native_url, **options))[0] == 1011
        assert (await refusal(server.native_url))[0] == 401


async def test_a_refused_client_that_ignores_the_close_frame_loses_its_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "LINGER_SECONDS", 0.5)
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"GET /realtime/ws?token=rubbish HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Sec-WebSocket-Version: 13\r\n\r\n"
        )
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                while await reader.read(1024):
                    pass
        writer.close()


async def test_sockets_whose_credential_is_being_checked_count_too() -> None:
    gate = asyncio.Event()

    class SlowHost:
        @hookimpl
        async def authenticate(self, credentials: Credentials) -> str:
            await gate.wait()
            return "7"

    settings = make_settings("", backend="memory", max_unauthenticated=1, max_connections=50)
    async with (
        serve_realtime(settings, plugins=[SlowHost()]) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(unauthenticated.BURST):
            await stack.enter_async_context(NativeClient(server))
        await until(lambda: server.rt.web.unauthenticated.count == unauthenticated.BURST)
        assert (await refusal(server.native_url))[0] == 503
        assert (await refusal(server.compat_url("1")))[0] == 503
        gate.set()
        await until(lambda: len(server.rt.web.hub.connections) == unauthenticated.BURST)
        assert server.rt.web.unauthenticated.count == 0
