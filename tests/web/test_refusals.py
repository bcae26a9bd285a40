"""Refused topics, credentials, origins and frames; another client of the server is unaffected."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator

import pytest
from clients import SUBPROTOCOL, CompatClient, NativeClient, bystander, refusal
from configuration import token
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, server_processes
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from semantik_realtime.config import Settings
from semantik_realtime.core.session import SessionLimits
from semantik_realtime.errors import EventTooBig, TopicError
from semantik_realtime.web.endpoints import inbox


@pytest.fixture(autouse=True)
async def bystander_on_the_server(
    web_server: InProcessServer, publisher: Publisher
) -> AsyncIterator[None]:
    async with bystander(web_server, publisher):
        yield


@pytest.mark.every_row
async def test_a_foreign_job_and_an_unknown_one_are_denied_alike(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:foreign", 1, owner="8")
    async with NativeClient(
        web_server, "job:foreign", "job:unknown", "user:8", "collection:1"
    ) as client:
        await client.wait_for("denied", 4)
        denied = {frame.pop("topic"): frame for frame in client.ops("denied")}
        assert len(denied) == 4
        assert all(frame["code"] == "forbidden" for frame in denied.values())
        assert denied["job:foreign"] == denied["job:unknown"]
        assert client.closed is None
        await publisher.publish("job:foreign", 3, owner="8")
        await client.send({"op": "ping"})
        await client.wait_for("pong")
        assert not client.ops("events")


async def test_denied_topics_do_not_count_against_the_limit(
    settings: Settings, web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    limit = settings.max_topics
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        for start in range(0, 2 * limit, limit):
            topics = {f"job:unknown{start + number}": None for number in range(limit)}
            await client.send({"op": "subscribe", "topics": topics})
            await client.wait_for("denied", start + limit)
        await client.subscribe("job:1")
        await client.wait_for("sync")
        assert not client.ops("error")


async def test_too_many_topics_are_refused_and_none_of_them_is_opened(
    settings: Settings, web_server: InProcessServer
) -> None:
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        topics = {f"job:{number}": None for number in range(settings.max_topics + 1)}
        await client.send({"op": "subscribe", "topics": topics})
        assert (await client.wait_for("error"))["code"] == "too_many_topics"
        assert not client.ops("denied")


@pytest.mark.parametrize(
    ("credential", "code"),
    [
        ("rubbish", 4401),
        (token("7").rpartition(".")[0] + ".c2lnbmF0dXJl", 4401),
        (token("7", seconds=-1), 4402),
        (token(""), 4401),
        (token(["7"]), 4401),
        (token("7", nbf=10**11), 4401),
    ],
    ids=["unreadable", "signature", "expired", "no user", "list", "not yet valid"],
)
async def test_a_bad_credential_is_refused(
    web_server: InProcessServer, publisher: Publisher, credential: str, code: int
) -> None:
    await publisher.publish("job:1", 1)
    assert (await refusal(web_server.native_url + f"?token={credential}"))[0] == code
    assert (await refusal(web_server.compat_url("1") + f"?token={credential}"))[0] == 1008
    async with NativeClient(web_server, query="") as client:
        await client.send({"op": "auth", "token": credential})
        await until(lambda: client.closed)
        assert client.closed == code


async def test_without_a_credential_the_compat_wire_refuses_and_the_native_wire_waits_for_auth(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    assert (await refusal(web_server.compat_url("1")))[0] == 1008
    async with NativeClient(web_server, "job:1", query="") as client:
        await client.send({"op": "ping"})
        assert (await client.wait_for("error"))["code"] == "unauthenticated"
        await client.send({"op": "auth", "token": token()})
        await client.wait_synced()


async def test_a_client_that_has_no_credential_is_refused_at_once(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, query="") as client:
        await client.send({"op": "auth", "token": None})
        # The server waits for 10 s for a client that says nothing.
        await until(lambda: client.closed, 5)
        assert client.closed == 4401
    async with NativeClient(web_server, "job:1") as client:
        await client.send({"op": "auth", "token": None})
        await client.wait_synced()
        assert not client.ops("error")


async def test_a_client_that_does_not_authenticate_in_time_is_closed(
    web_server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = functools.partial(SessionLimits, auth_seconds=0.3)
    monkeypatch.setattr("semantik_realtime.web.endpoints.websocket.SessionLimits", short)
    assert (await refusal(web_server.native_url))[0] == 4408
    # Another frame does not extend the deadline.
    async with NativeClient(web_server, query="") as client:
        await client.send({"op": "ping"})
        await until(lambda: client.closed)
        assert client.closed == 4408


@pytest.mark.parametrize("wire", ["native", "compat"])
async def test_a_page_of_another_origin_is_refused_before_accepting(
    web_server: InProcessServer, publisher: Publisher, wire: str
) -> None:
    await publisher.publish("job:1", 1)
    url = (
        web_server.native_url if wire == "native" else web_server.compat_url("1")
    ) + f"?token={token()}"
    for origin in (
        "https://evil.example",
        "null",
        "http://[",
        f"http://127.0.0.1:{web_server.port}.evil",
    ):
        assert await refusal(url, origin=origin) == (403, "handshake")
    async with connect(url, origin=f"http://127.0.0.1:{web_server.port}") as socket:
        await socket.recv()


@pytest.mark.every_backend(shares_storage=True)
async def test_an_eleventh_connection_over_two_servers_is_refused(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with server_processes(2, settings) as servers:
        clients = [NativeClient(servers[number % 2], "job:1") for number in range(10)]
        for client in clients:
            await client.open()
            await client.wait_synced()
        for server in servers:
            assert (await refusal(server.native_url + f"?token={token()}"))[0] == 4429
            assert (await refusal(server.compat_url("1") + f"?token={token()}"))[0] == 1006
        async with NativeClient(servers[0], user="8") as other:
            await other.wait_for("welcome")

        await clients[0].abort()

        async def accepts_another() -> bool:
            async with NativeClient(servers[1], "job:1") as again:
                await until(lambda: again.closed or again.ops("welcome"))
                return again.closed is None

        for _ in range(200):
            if await accepts_another():
                break
        else:
            raise AssertionError("the lease of a closed connection is not released")
        for client in clients[1:]:
            assert client.closed is None
            await client.close()


async def test_unreadable_frames_are_answered_and_too_many_of_them_end_the_connection(
    web_server: InProcessServer,
) -> None:
    unreadable: list[str | bytes] = [
        "",
        "{",
        "[]",
        '"op"',
        '{"op":1}',
        b"\xff\xfe\x00",
        "[" * 5000,
        '{"op":"\\ud800"}',
        "null",
    ]
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        for number, frame in enumerate(unreadable, start=1):
            await client.send(frame)
            error = await client.wait_for("error", number)
            assert error["code"] in ("bad_frame", "unknown_op"), frame
        assert client.closed is None
        for _ in range(10):
            await client.send("rubbish")
        await until(lambda: client.closed)
        assert client.closed == 4400


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"op": "no such op"}, "unknown_op"),
        ({"op": "subscribe"}, "bad_frame"),
        ({"op": "subscribe", "topics": {"job:1": 7}}, "bad_frame"),
        ({"op": "subscribe", "topics": {"job:1": None}, "history": 1001}, "bad_frame"),
        ({"op": "subscribe", "topics": {"job:1": None}, "history": True}, "bad_frame"),
        ({"op": "subscribe", "topics": {"../x": None}}, "bad_topic"),
        ({"op": "subscribe", "topics": {"job:../x": None}}, "bad_topic"),
        ({"op": "subscribe", "topics": {"JOB:1": None, "job:1": None}}, "bad_topic"),
        ({"op": "subscribe", "topics": {"job:": None}}, "bad_topic"),
        ({"op": "unsubscribe", "topics": "job:1"}, "bad_frame"),
        ({"op": "auth"}, "bad_frame"),
    ],
)
async def test_a_wrong_frame_is_answered_and_has_no_effect(
    web_server: InProcessServer, frame: object, code: str
) -> None:
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        await client.send(frame)
        assert (await client.wait_for("error"))["code"] == code
        await client.send({"op": "ping"})
        await client.wait_for("pong")
        assert not client.ops("sync")
        assert not client.ops("denied")


async def test_a_frame_of_two_megabytes_is_refused(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        with contextlib.suppress(ConnectionClosed):
            await client.send(json.dumps({"op": "ping", "filling": "x" * 2_000_000}))
        await until(lambda: client.closed)
        assert client.closed == 1009
    async with CompatClient(web_server.compat_url("1")) as compat:
        await compat.send("x" * 60_000)
        assert "status" not in (await compat.wait_for("error"))["data"]
        await compat.send("ping")
        await compat.wait_for("pong")
        await compat.send("x" * 2_000_000)
        assert await compat.wait_closed() == 1009


async def test_an_event_of_a_megabyte_is_refused_before_sending(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        with pytest.raises(EventTooBig, match="65536"):
            await web_server.rt.publish("job:1", "big", data={"text": "x" * 2**20})
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", 2)
        assert client.numbers("job:1") == [1]


async def test_a_topic_outside_the_grammar_is_refused_everywhere(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    with pytest.raises(TopicError):
        await web_server.rt.publish("../x", "step")
    for name in ("..", "%2e%2e", "a%20b", "%00", "x" * 300, "%C3%A4", "%C3%A4" * 80):
        assert (await refusal(web_server.compat_url(name) + f"?token={token()}"))[0] == 1008, name
    async with web_server.http_client() as http:
        for name in ("%2e%2e", "a%20b", "%00", "x" * 300):
            assert (await http.get(f"/realtime/jobs/{name}")).status_code == 404, name


async def test_a_flood_of_requests_ends_only_its_own_connection(
    web_server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "FLOOD_SECONDS", 0.5)
    client = NativeClient(web_server, compression=None)
    await client.open()
    await client.wait_for("welcome")
    [connection] = [c for c in web_server.rt.web.hub.connections if c.identity.user == "7"]
    assert client.socket is not None
    # The client stops reading too, so the server's answers pile up.
    client.socket.transport.pause_reading()

    async def flood(socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send('{"op":"flood"}')

    flooding = asyncio.create_task(flood(client.socket))
    await until(lambda: connection.ended, 30)
    assert connection.ended.code == 4420
    client.socket.transport.abort()
    await flooding


async def test_the_token_is_accepted_in_each_of_its_places(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    offered = f"access_token.{token()}"
    places = [
        {"subprotocols": [offered]},
        {"additional_headers": {"Authorization": f"Bearer {token()}"}},
        {"additional_headers": {"Cookie": f"access_token={token()}"}},
    ]
    for options in places:
        async with CompatClient(web_server.compat_url("1"), user=None, **options) as compat:
            await compat.wait_for("current_state")
            echoed = offered if "subprotocols" in options else None
            assert compat.socket is not None
            assert compat.socket.subprotocol == echoed
        async with connect(web_server.native_url, **options) as socket:
            assert json.loads(await socket.recv())["op"] == "welcome"
    both = [SUBPROTOCOL, offered]
    async with connect(web_server.native_url, subprotocols=both) as socket:
        assert socket.subprotocol == SUBPROTOCOL
        assert json.loads(await socket.recv())["op"] == "welcome"
