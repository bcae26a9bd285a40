"""The Python client: once and in order, through reconnects; final refusals end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from fleet import Publisher, site_of, token, until
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from semantik_realtime import client
from semantik_realtime.client import Update, watch
from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError, InvalidInput, TopicError
from semantik_realtime.testing.servers import free_port


async def numbers_until(
    url: str, topic: str, last: int, updates: list[Update] | None = None
) -> list[int]:
    """The events' numbers in the order in which the client gave them, to the ``last``."""
    got: list[int] = []
    async with asyncio.timeout(30), aclosing(watch(url, topic, token=token())) as following:
        async for update in following:
            if updates is not None:
                updates.append(update)
            got += [event["data"]["n"] for event in update.events if "n" in event["data"]]
            if got and got[-1] == last:
                return got
    raise AssertionError(f"ended after {got[-3:]}")


@pytest.mark.every_backend
async def test_events_come_once_and_in_order_though_the_server_cuts_the_link(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.01)
    async with site_of(settings) as site:
        runtime = site.rt
        await runtime.publish("job:1", "begin", owner="7")
        updates: list[Update] = []
        following = asyncio.create_task(numbers_until(site.native, "job:1", 299, updates))
        await until(lambda: updates)
        for number in range(300):
            await runtime.publish("job:1", "step", data={"n": number})
            if number % 60 == 30:
                await runtime_cut(runtime)
        assert await following == list(range(300))
        assert sum(update.connection == "reconnecting" for update in updates) >= 3


async def runtime_cut(runtime: Any) -> None:
    """End every connection, there being one, as a draining server does, and serve on."""
    hub = runtime.web.hub
    await until(lambda: hub.connections)
    await hub.drain(5.0)
    hub.draining = False


async def test_a_foreign_topic_ends_it(settings: Settings, publisher: Publisher) -> None:
    await publisher.publish("job:2", 1, owner="8")
    async with site_of(settings) as site:
        with pytest.raises(AccessError, match="not yours"):
            await numbers_until(site.native, "job:2", 1)


async def test_a_topic_outside_the_grammar_is_refused_before_connecting() -> None:
    with pytest.raises(TopicError):
        await numbers_until("ws://127.0.0.1:9/", "../x", 1)


@pytest.mark.parametrize("code", [1009, 4400, 4401, 4402, 4403, 4408])
async def test_final_close_codes_end_it(code: int) -> None:
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
            await numbers_until(f"ws://127.0.0.1:{port}/", "job:1", 1)


@asynccontextmanager
async def answering(statuses: list[int]) -> AsyncIterator[str]:
    """A server that answers handshakes with ``statuses``, the last one for ever; gives its URL."""

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
async def test_a_server_without_such_a_websocket_ends_it_with_what_it_said(
    status: int, phrase: str
) -> None:
    async with answering([status]) as url:
        with pytest.raises(InvalidInput) as raised:
            await numbers_until(url, "job:1", 1)
    said = str(raised.value)
    assert f"/somewhere?***: the server answered {status} {phrase}" in said
    assert "expected: ws://host:port/realtime/ws" in said
    assert "token" not in said


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_handshake_ends_it(status: int) -> None:
    async with answering([status]) as url:
        with pytest.raises(AccessError, match=f"answered {status}"):
            await numbers_until(url, "job:1", 1)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "127.0.0.1:8000", "ws://127.0.0.1:99999/", "ws:///x", ""]
)
async def test_a_url_that_is_no_websockets_is_refused_before_connecting(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"expected: ws://host:port/realtime/ws"):
        await numbers_until(url, "job:1", 1)


async def test_while_a_server_is_out_of_order_it_goes_on_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.001)
    reasons: list[str] = []
    # Served once, so the address is right, and a 404 is a proxy's that has no server now.
    async with (
        answering([503, 429, 101, 404, 502, 101, 500]) as url,
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


@pytest.mark.parametrize("code", [1011, 1012, 4413, 4429])
async def test_after_other_codes_it_comes_back(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_SECONDS", 0.001)
    came = 0

    async def refuse(connection: ServerConnection) -> None:
        nonlocal came
        came += 1
        await connection.close(code, "later")

    async with serve(
        refuse,
        "127.0.0.1",
        0,
        subprotocols=["semantik.realtime.v1"],  # type: ignore[list-item]
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        following = asyncio.create_task(numbers_until(f"ws://127.0.0.1:{port}/", "job:1", 1))
        await until(lambda: came >= 4)
        following.cancel()
        await asyncio.wait((following,))
