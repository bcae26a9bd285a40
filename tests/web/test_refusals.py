"""Who and what is refused, how, and that nobody else on the server notices."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator

import pytest
from fleet import (
    SUBPROTOCOL,
    Compat,
    Here,
    Native,
    Publisher,
    bystander,
    fleet_of,
    refused,
    token,
    until,
)
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from semantik_realtime.config import Settings
from semantik_realtime.core.session import SessionLimits
from semantik_realtime.errors import EventTooBig, TopicError


@pytest.fixture(autouse=True)
async def somebody_else(site: Here, publisher: Publisher) -> AsyncIterator[None]:
    async with bystander(site, publisher):
        yield


@pytest.mark.every_row
async def test_a_foreign_job_and_an_unknown_one_are_denied_alike(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:foreign", 1, owner="8")
    async with Native(site, "job:foreign", "job:unknown", "user:8", "collection:1") as client:
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
    settings: Settings, site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    limit = settings.max_topics
    async with Native(site) as client:
        await client.wait_for("welcome")
        for start in range(0, 2 * limit, limit):
            topics = {f"job:unknown{start + number}": None for number in range(limit)}
            await client.send({"op": "subscribe", "topics": topics})
            await client.wait_for("denied", start + limit)
        await client.subscribe("job:1")
        await client.wait_for("sync")
        assert not client.ops("error")


async def test_too_many_topics_are_refused_and_none_of_them_is_opened(
    settings: Settings, site: Here
) -> None:
    async with Native(site) as client:
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
    ids=["rubbish", "signature", "expired", "nobody", "list", "not yet valid"],
)
async def test_a_bad_credential_is_refused(
    site: Here, publisher: Publisher, credential: str, code: int
) -> None:
    await publisher.publish("job:1", 1)
    assert (await refused(site.native + f"?token={credential}"))[0] == code
    assert (await refused(site.compat("1") + f"?token={credential}"))[0] == 1008
    async with Native(site, query="") as client:
        await client.send({"op": "auth", "token": credential})
        await until(lambda: client.closed)
        assert client.closed == code


async def test_without_a_credential_the_compat_wire_is_refused_and_the_native_one_waits(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    assert (await refused(site.compat("1")))[0] == 1008
    async with Native(site, "job:1", query="") as client:
        await client.send({"op": "ping"})
        assert (await client.wait_for("error"))["code"] == "unauthenticated"
        await client.send({"op": "auth", "token": token()})
        await client.synced()


async def test_who_does_not_authenticate_in_time_is_sent_away(
    site: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = functools.partial(SessionLimits, auth_seconds=0.3)
    monkeypatch.setattr("semantik_realtime.web.endpoints.websocket.SessionLimits", hasty)
    assert (await refused(site.native))[0] == 4408
    # Saying something else does not help.
    async with Native(site, query="") as client:
        await client.send({"op": "ping"})
        await until(lambda: client.closed)
        assert client.closed == 4408


@pytest.mark.parametrize("wire", ["native", "compat"])
async def test_a_page_of_another_origin_is_refused_before_accepting(
    site: Here, publisher: Publisher, wire: str
) -> None:
    await publisher.publish("job:1", 1)
    url = (site.native if wire == "native" else site.compat("1")) + f"?token={token()}"
    for origin in (
        "https://evil.example",
        "null",
        "http://[",
        f"http://127.0.0.1:{site.port}.evil",
    ):
        assert await refused(url, origin=origin) == (403, "handshake")
    async with connect(url, origin=f"http://127.0.0.1:{site.port}") as socket:
        await socket.recv()


@pytest.mark.every_backend(shares_storage=True)
async def test_an_eleventh_connection_is_refused_counted_over_two_servers(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with fleet_of(2, settings) as servers:
        clients = [Native(servers[number % 2], "job:1") for number in range(10)]
        for client in clients:
            await client.open()
            await client.synced()
        for server in servers:
            assert (await refused(server.native + f"?token={token()}"))[0] == 4429
            assert (await refused(server.compat("1") + f"?token={token()}"))[0] == 1008
        async with Native(servers[0], user="8") as other:
            await other.wait_for("welcome")

        await clients[0].cut()

        async def takes_another() -> bool:
            async with Native(servers[1], "job:1") as again:
                await until(lambda: again.closed or again.ops("welcome"))
                return again.closed is None

        for _ in range(200):
            if await takes_another():
                break
        else:
            raise AssertionError("a seat given back stays taken")
        for client in clients[1:]:
            assert client.closed is None
            await client.close()


async def test_rubbish_is_answered_and_too_much_of_it_ends_the_connection(site: Here) -> None:
    rubbish: list[str | bytes] = [
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
    async with Native(site) as client:
        await client.wait_for("welcome")
        for number, frame in enumerate(rubbish, start=1):
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
async def test_a_wrong_frame_is_answered_and_nothing_is_done(
    site: Here, frame: object, code: str
) -> None:
    async with Native(site) as client:
        await client.wait_for("welcome")
        await client.send(frame)
        assert (await client.wait_for("error"))["code"] == code
        await client.send({"op": "ping"})
        await client.wait_for("pong")
        assert not client.ops("sync")
        assert not client.ops("denied")


async def test_a_frame_of_two_megabytes_is_refused(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site) as client:
        await client.wait_for("welcome")
        await client.send(json.dumps({"op": "ping", "filling": "x" * 2_000_000}))
        await until(lambda: client.closed)
        assert client.closed == 1009
    async with Compat(site.compat("1")) as compat:
        await compat.send("x" * 2_000_000)
        assert "status" not in (await compat.wait_for("error"))["data"]
        await compat.send("ping")
        await compat.wait_for("pong")


async def test_an_event_of_a_megabyte_is_not_sent(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        with pytest.raises(EventTooBig, match="65536"):
            await site.rt.publish("job:1", "big", data={"text": "x" * 2**20})
        await publisher.publish("job:1", 1)
        await client.has("job:1", 2)
        assert client.numbers("job:1") == [1]


async def test_a_topic_outside_the_grammar_is_refused_everywhere(
    site: Here, publisher: Publisher
) -> None:
    with pytest.raises(TopicError):
        await site.rt.publish("../x", "step")
    for name in ("..", "%2e%2e", "a%20b", "%00", "x" * 300, "%C3%A4", "%C3%A4" * 80):
        assert (await refused(site.compat(name) + f"?token={token()}"))[0] == 1008, name
    async with site.client() as http:
        for name in ("%2e%2e", "a%20b", "%00", "x" * 300):
            assert (await http.get(f"/realtime/jobs/{name}")).status_code == 404, name


async def test_a_flood_of_questions_ends_only_the_one_who_asks(site: Here) -> None:
    client = Native(site, compression=None)
    await client.open()
    await client.wait_for("welcome")
    [connection] = [c for c in site.rt.web.hub.connections if c.identity.user == "7"]
    assert client.socket is not None
    # Nothing is read any more: answers pile up until there are too many.
    client.socket.transport.pause_reading()

    async def flood(socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send('{"op":"flood"}')

    flooding = asyncio.create_task(flood(client.socket))
    await until(lambda: connection.ended, 30)
    assert connection.ended.code == 4413
    client.socket.transport.abort()
    await flooding


async def test_the_token_travels_in_any_of_its_places(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    offered = f"access_token.{token()}"
    places = [
        {"subprotocols": [offered]},
        {"additional_headers": {"Authorization": f"Bearer {token()}"}},
        {"additional_headers": {"Cookie": f"access_token={token()}"}},
    ]
    for options in places:
        async with Compat(site.compat("1"), user=None, **options) as compat:
            await compat.wait_for("current_state")
            echoed = offered if "subprotocols" in options else None
            assert compat.socket is not None
            assert compat.socket.subprotocol == echoed
        async with connect(site.native, **options) as socket:
            assert json.loads(await socket.recv())["op"] == "welcome"
    both = [SUBPROTOCOL, offered]
    async with connect(site.native, subprotocols=both) as socket:
        assert socket.subprotocol == SUBPROTOCOL
        assert json.loads(await socket.recv())["op"] == "welcome"
