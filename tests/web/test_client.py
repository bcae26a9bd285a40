"""The Python client: each event once and in order through reconnects; final refusals end it."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from configuration import token
from publisher import Publisher
from waiting import until
from web_servers import serve_realtime
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from semantik_realtime import client
from semantik_realtime.client import Update, watch
from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError, InvalidInput, TopicError
from semantik_realtime.testing.servers import free_port


async def collect_numbers(
    url: str, topic: str, last: int, updates: list[Update] | None = None
) -> list[int]:
    """Return the numbers of the events in the order of the client, up to ``last``."""
    numbers: list[int] = []
    async with asyncio.timeout(30), aclosing(watch(url, topic, token=token())) as following:
        async for update in following:
            if updates is not None:
                updates.append(update)
            numbers += [event["data"]["n"] for event in update.events if "n" in event["data"]]
            if numbers and numbers[-1] == last:
                return numbers
    raise AssertionError(f"ended after {numbers[-3:]}")


@pytest.mark.every_backend
async def test_each_event_arrives_once_and_in_order_though_the_server_ends_connections(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.01)
    async with serve_realtime(settings) as web_server:
        runtime = web_server.rt
        await runtime.publish("job:1", "begin", owner="7")
        updates: list[Update] = []
        following = asyncio.create_task(
            collect_numbers(web_server.native_url, "job:1", 299, updates)
        )
        await until(lambda: updates)
        for number in range(300):
            await runtime.publish("job:1", "step", data={"n": number})
            if number % 60 == 30:
                await end_connections(runtime)
        assert await following == list(range(300))
        assert sum(update.connection == "reconnecting" for update in updates) >= 3


async def end_connections(runtime: Any) -> None:
    """End the connections as a draining server does, once there is one, and go on serving."""
    hub = runtime.web.hub
    await until(lambda: hub.connections)
    await hub.drain(5.0)
    hub.draining = False


async def test_a_foreign_topic_ends_the_client(settings: Settings, publisher: Publisher) -> None:
    await publisher.publish("job:2", 1, owner="8")
    async with serve_realtime(settings) as web_server:
        with pytest.raises(AccessError, match="not yours"):
            await collect_numbers(web_server.native_url, "job:2", 1)


async def test_a_topic_outside_the_grammar_is_refused_before_connecting() -> None:
    with pytest.raises(TopicError):
        await collect_numbers("ws://127.0.0.1:9/", "../x", 1)


async def all_updates(url: str, topic: str = "job:1", **options: Any) -> list[Update]:
    """Return the updates until the client ends by itself."""
    async with asyncio.timeout(30), aclosing(watch(url, topic, **options)) as following:
        return [update async for update in following]


async def test_the_client_ends_soon_after_the_end_of_the_job_and_follows_a_new_attempt(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LINGER_SECONDS", 1.5)
    await publisher.publish("job:1", 1)
    async with serve_realtime(settings) as web_server:
        url = web_server.native_url
        following = asyncio.create_task(all_updates(url, token=token()))
        channels = web_server.rt.web.hub._channels
        # It has its snapshot: an end that it begins with would be its last update.
        await until(lambda: "job:1" in channels and channels["job:1"]._watchers)
        await publisher.end("job:1", "job_lost")
        state = {"status": "running", "attempt": 2}
        publisher.emit("job:1", type="job_started", job="1", attempt=2, state=state)
        await publisher.flush()
        # It has ended once, and goes on.
        await asyncio.sleep(3)
        assert not following.done()
        await publisher.end("job:1")
        updates = await following
        assert updates[-1].view.states["1"]["status"] == "completed"
        await until(lambda: not web_server.rt.web.hub.connections)
        # An end that it starts with is its last update.
        monkeypatch.setattr(client, "LINGER_SECONDS", 60.0)
        [only] = await all_updates(url, token=token(), history=2)
        assert [event["type"] for event in only.events] == ["job_started", "job_completed"]


async def test_a_client_without_a_credential_is_refused_at_once(settings: Settings) -> None:
    async with serve_realtime(settings) as web_server, asyncio.timeout(8):
        with pytest.raises(AccessError, match="4401"):
            await all_updates(web_server.native_url)


@pytest.mark.parametrize("code", [4404, 4429, 4450])
async def test_where_the_server_has_no_place_the_client_tries_again_slowly(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def refuse(connection: ServerConnection) -> None:
        await connection.close(code, "no place")

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise EOFError

    async with serve(refuse, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        # Of the client alone: websockets sleeps too.
        patched = types.SimpleNamespace(**{**vars(asyncio), "sleep": pause})
        monkeypatch.setattr(client, "asyncio", patched)
        with pytest.raises(EOFError):
            await all_updates(f"ws://127.0.0.1:{port}/")
    assert all(15 <= seconds <= 30 for seconds in pauses)


@pytest.mark.parametrize("code", [1009, 4400, 4401, 4402, 4403, 4408, 4420])
async def test_final_close_codes_end_the_client(code: int) -> None:
    async def refuse(connection: ServerConnection) -> None:
        await connection.close(code, "no")

    async with serve(
        refuse,
        "127.0.0.1",
        0,
        subprotocols=["semantik.realtime.v1"],  # type: ignore[list-item]
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(AccessError, match=str(code)):
            await collect_numbers(f"ws://127.0.0.1:{port}/", "job:1", 1)


@asynccontextmanager
async def handshake_server(statuses: list[int]) -> AsyncIterator[str]:
    """The URL of a server that answers handshakes with ``statuses``; the last one repeats."""

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        return None if status == 101 else connection.respond(status, "no\n")

    async def greet(connection: ServerConnection) -> None:
        await connection.send('{"op":"welcome","heartbeat_seconds":20}')
        await connection.recv()
        await connection.send(
            '{"op":"sync","topic":"job:1","mode":"snapshot","reason":"new","offset":0,'
            '"cursor":null,"states":{},"events":[]}'
        )
        await connection.close(1012, "the server stops")

    async with serve(
        greet,
        "127.0.0.1",
        0,
        process_request=answer,
        subprotocols=["semantik.realtime.v1"],  # type: ignore[list-item]
    ) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/somewhere?token=x"


@pytest.mark.parametrize(
    ("status", "phrase"), [(400, "Bad Request"), (404, "Not Found"), (426, "Upgrade Required")]
)
async def test_a_server_without_the_websocket_ends_the_client_with_its_response(
    status: int, phrase: str
) -> None:
    async with handshake_server([status]) as url:
        with pytest.raises(InvalidInput) as raised:
            await collect_numbers(url, "job:1", 1)
    message = str(raised.value)
    assert f"/somewhere?***: the server answered {status} {phrase}" in message
    assert "expected: ws://host:port/realtime/ws" in message
    assert "token" not in message


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_handshake_ends_the_client(status: int) -> None:
    async with handshake_server([status]) as url:
        with pytest.raises(AccessError, match=f"answered {status}"):
            await collect_numbers(url, "job:1", 1)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "127.0.0.1:8000", "ws://127.0.0.1:99999/", "ws:///x", ""]
)
async def test_a_url_that_is_not_of_a_websocket_is_refused_before_connecting(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"expected: ws://host:port/realtime/ws"):
        await collect_numbers(url, "job:1", 1)


async def test_the_client_retries_and_reports_why_while_a_server_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.001)
    reasons: list[str] = []
    # After the first success the address is right, so a 404 is from a proxy without a server.
    async with (
        handshake_server([503, 429, 101, 404, 502, 101, 500]) as url,
        asyncio.timeout(20),
        aclosing(watch(url, "job:1")) as following,
    ):
        async for update in following:
            reasons.append(update.reason)
            if "500" in update.reason:
                break
    assert reasons == [
        "the server answered 503 Service Unavailable",
        "the server answered 429 Too Many Requests",
        "",
        "the server stops (1012)",
        "the server answered 404 Not Found",
        "the server answered 502 Bad Gateway",
        "",
        "the server stops (1012)",
        "the server answered 500 Internal Server Error",
    ]
    async with aclosing(watch(f"ws://127.0.0.1:{free_port()}/", "job:1")) as following:
        assert "Connect call failed" in (await anext(following)).reason


@pytest.mark.parametrize("code", [1011, 1012, 4413])
async def test_after_other_close_codes_the_client_reconnects(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.001)
    connections = 0

    async def refuse(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        await connection.close(code, "later")

    async with serve(
        refuse,
        "127.0.0.1",
        0,
        subprotocols=["semantik.realtime.v1"],  # type: ignore[list-item]
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        following = asyncio.create_task(collect_numbers(f"ws://127.0.0.1:{port}/", "job:1", 1))
        await until(lambda: connections >= 4)
        following.cancel()
        await asyncio.wait((following,))
