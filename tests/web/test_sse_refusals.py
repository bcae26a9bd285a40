"""Server-sent events: a request is refused before the stream begins."""

from __future__ import annotations

from typing import Any

import pytest
from clients import NativeClient, SseClient, bystander, refusal
from configuration import token
from publisher import Publisher
from web_servers import InProcessServer, serve_realtime, server_processes

from semantik_realtime.config import Settings
from semantik_realtime.hookspecs import hookimpl

JOB = "/realtime/jobs/1/events"


async def refused_stream(web_server: InProcessServer, *topics: str, **options: Any) -> SseClient:
    """Request a stream that the server must refuse; return the client with its response."""
    async with SseClient(web_server, *topics, **options) as client:
        assert client.status != 200
        assert client.answer is not None
        await client.answer.aread()
        assert not client.frames
    return client


def answer_of(client: SseClient) -> tuple[bytes, list[tuple[str, str]]]:
    """Return the body and the headers of a response, but for the date."""
    assert client.answer is not None
    headers = [header for header in client.answer.headers.items() if header[0] != "date"]
    return client.answer.content, headers


@pytest.mark.every_row
async def test_a_foreign_job_and_an_unknown_one_get_the_same_404_before_the_stream(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1, owner="8")
    async with bystander(web_server, publisher):
        for path in ("/realtime/jobs/{}/events", "/realtime/events?topic=job:{}"):
            first, second = [
                await refused_stream(web_server, path=path.format(job), headers=bearer())
                for job in ("1", "2")
            ]
            assert first.status == second.status == 404
            assert answer_of(first) == answer_of(second)
        for several in (("job:1", "job:2", "user:8"), ("collection:1",)):
            assert (await refused_stream(web_server, *several)).status == 404
        refused = web_server.rt.web.hub.stats.refused
        assert (refused["forbidden"], refused["policy"]) == (6, 0)


def bearer(**options: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(**options)}"}


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({}, 401, "unauthenticated"),
        ({"Authorization": "Bearer rubbish"}, 401, "unauthenticated"),
        (bearer(seconds=-1), 401, "expired"),
        ({**bearer(), "Origin": "https://evil.example"}, 403, "origin"),
        ({**bearer(), "Origin": "null"}, 403, "origin"),
    ],
    ids=["none", "unreadable", "expired", "origin", "null"],
)
async def test_a_request_that_may_not_connect_is_refused_before_the_stream(
    web_server: InProcessServer,
    publisher: Publisher,
    headers: dict[str, str],
    status: int,
    reason: str,
) -> None:
    await publisher.publish("job:1", 1)
    for path in (JOB, "/realtime/jobs/2/events"):
        assert (await refused_stream(web_server, path=path, headers=headers)).status == status
    assert web_server.rt.web.hub.stats.refused[reason] == 2


@pytest.mark.parametrize(
    "query", ["", "topic=", "topic=JOB:1", "topic=../x", "topic=job:1&history=1001", "many"]
)
async def test_a_wrong_query_is_422(
    web_server: InProcessServer, publisher: Publisher, query: str
) -> None:
    await publisher.publish("job:1", 1)
    if query == "many":
        query = "&".join(f"topic=job:{number}" for number in range(101))
    client = await refused_stream(web_server, path=f"/realtime/events?{query}", headers=bearer())
    assert client.status == 422


async def test_the_token_is_accepted_in_each_of_its_places(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    same = {"Origin": f"http://127.0.0.1:{web_server.port}"}
    for headers in (bearer(), {"Cookie": f"access_token={token()}", **same}, None):
        options = {} if headers is None else {"headers": headers}
        async with SseClient(web_server, "job:1", **options) as client:
            await client.wait_synced()


@pytest.mark.every_backend(shares_storage=True)
async def test_a_stream_counts_against_the_users_connection_limit_over_all_servers(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    settings = settings.model_copy(update={"max_connections": 3})
    async with server_processes(2, settings) as (one, other), NativeClient(one, "job:1") as native:
        await native.wait_synced()
        async with SseClient(one, "job:1") as first, SseClient(other, "job:1") as second:
            await first.wait_synced()
            await second.wait_synced()
            for server in (one, other):
                async with SseClient(server, "job:1") as late:
                    assert late.status == 429
                assert (await refusal(server.native_url + f"?token={token()}"))[0] == 4429
            async with SseClient(one, "user:8", user="8") as other_user:
                await other_user.wait_synced()

        async def accepts_another() -> bool:
            async with SseClient(other, "job:1") as again:
                return again.status == 200

        for _ in range(200):
            if await accepts_another():
                break
        else:
            raise AssertionError("the lease of a closed connection is not released")


async def test_while_authentication_fails_the_stream_announces_when_to_reconnect(
    settings: Settings, publisher: Publisher
) -> None:
    class Login:
        away = True

        @hookimpl
        async def authenticate(self) -> str:
            if self.away:
                raise OSError("no database")
            return "7"

    await publisher.publish("job:1", 1)
    login = Login()
    async with (
        serve_realtime(settings, plugins=[login]) as web_server,
        SseClient(web_server, "job:1") as client,
    ):
        last = await client.wait_ended()
        assert (client.status, last["op"], last["code"]) == (200, "bye", 1011)
        assert client.retries == [round(last["reconnect_seconds"] * 1000)]
        login.away = False
        await client.abort()
        await client.open()
        await client.wait_synced()
