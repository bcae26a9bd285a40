"""A token for one topic: every transport takes it, and it allows nothing else."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from clients import CompatClient, NativeClient, SseClient, refusal
from configuration import make_settings, token
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime import Realtime, hookimpl
from semantik_realtime.config import Settings
from semantik_realtime.core.topic_token import PREFIX, make_token
from semantik_realtime.errors import AccessError, ConfigError
from semantik_realtime.hookspecs import Credentials
from semantik_realtime.testing.contract import until_unknown

NEW, OLD = "n" * 32, "o" * 32
SETTINGS = {"topic_secrets": f"{NEW},{OLD}", "grace_seconds": 0.3, "compat_feed_path": "/ws/feed"}


class Host:
    """A host that lets in everybody whom it is asked about, and notes whom."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str:
        self.asked.append(credentials.token)
        return "1"

    @hookimpl
    def authorize(self, user: str) -> bool:
        self.asked.append(user)
        return True

    @hookimpl
    def may_cancel(self, user: str) -> bool:
        self.asked.append(user)
        return True


@pytest.fixture
async def publisher(publisher: Publisher) -> Publisher:
    for topic in ("job:1", "job:2"):
        await publisher.publish(topic, 3)
    return publisher


async def closed(client: NativeClient) -> int | None:
    await until(lambda: client.closed is not None, 5, lambda: client)
    return client.closed


def native(server: InProcessServer, made: str, *topics: str) -> NativeClient:
    return NativeClient(server, *topics, query=f"?token={made}")


@pytest.mark.every_backend
async def test_every_transport_takes_it_for_its_topic_and_no_other(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    made = web_server.rt.token_for("job:1")
    bearer = {"headers": {"Authorization": f"Bearer {made}"}}
    async with (
        native(web_server, made, "job:1", "job:2", "user:7") as by_query,
        NativeClient(web_server, "job:1", query="") as by_frame,
        SseClient(web_server, "job:1", **bearer) as stream,
        CompatClient(web_server.compat_url("1"), user=None, query={"token": made}) as compat,
    ):
        await by_frame.send({"op": "auth", "token": made})
        await by_query.wait_synced("job:1")
        await by_frame.wait_synced()
        await stream.wait_synced()
        await compat.wait_for("current_state")
        await until(lambda: len(by_query.ops("denied")) == 2)
        assert {one["topic"] for one in by_query.ops("denied")} == {"job:2", "user:7"}
    async with httpx.AsyncClient(base_url=web_server.http_url) as http:
        for path, status in {"jobs/1": 200, "jobs/1/history": 200, "jobs/2": 404}.items():
            answer = await http.get(f"/realtime/{path}", **bearer)
            assert answer.status_code == status, path
            query = await http.get(f"/realtime/{path}?token={made}")
            assert query.status_code == status, path
    # The feed of its user, which a viewer is not.
    for url in (web_server.compat_url("2"), web_server.compat_url("", "/ws/feed{}")):
        assert (await refusal(f"{url}?token={made}"))[0] == 1008


async def test_another_topic_is_denied_at_once_and_takes_no_place_of_those_that_wait(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semantik_realtime.web.hub.permission.WAIT_SECONDS", 60.0)
    made = web_server.rt.token_for("job:1")
    others = [f"job:{number}" for number in range(2, 90)]
    async with native(web_server, made, *others) as client:
        await until(lambda: len(client.ops("denied")) == len(others), 10, lambda: client)
    assert web_server.rt.web.hub.stats.waiting == 0


async def test_it_only_watches(web_server: InProcessServer, publisher: Publisher) -> None:
    made = web_server.rt.token_for("job:1", owner="7")
    async with web_server.http_client(user=None) as http:
        for command in ("cancel", "retry"):
            answer = await http.post(
                f"/realtime/jobs/1/{command}", headers={"Authorization": f"Bearer {made}"}
            )
            assert answer.status_code == 403


async def test_the_host_is_not_asked_about_a_viewer(settings: Settings) -> None:
    host = Host()
    async with serve_realtime(settings, plugins=[host]) as server:
        made = server.rt.token_for("job:1")
        await server.rt.publish("job:1", "note", owner="7")
        await server.rt.publish("job:2", "note", owner="7")
        async with native(server, made, "job:1", "job:2") as client:
            await client.wait_synced("job:1")
            await client.wait_for("denied")
        async with server.http_client(user=None) as http:
            answer = await http.post(
                "/realtime/jobs/1/cancel", headers={"Authorization": f"Bearer {made}"}
            )
            assert answer.status_code == 403
        assert host.asked == []
        # A token that nobody here has signed is no user of the host's either.
        forged = make_token("job:1", "x" * 32, time.time(), seconds=60)
        assert (await refusal(server.native_url + f"?token={forged}"))[0] == 4401
        assert host.asked == []


async def test_with_an_owner_it_ends_when_the_topic_gets_another_one(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    made = web_server.rt.token_for("job:1", owner=7)
    async with native(web_server, made, "job:1") as client:
        await client.wait_synced()
        await publisher.end("job:1")
        await until_unknown(web_server.rt.backend, "job:1")
        publisher.emit("job:1", owner="8", data={"text": "secret"})
        await publisher.flush()
        assert (await client.wait_for("denied"))["topic"] == "job:1"
        assert "secret" not in str(client.frames)


async def test_a_connection_ends_with_its_token_unless_there_is_a_fresh_one(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    rt = web_server.rt
    made = rt.token_for("job:1", seconds=1)
    # As of before the secrets were rotated.
    fresh = make_token("job:1", OLD, time.time(), owner="7", seconds=60)
    async with (
        native(web_server, made, "job:1") as ends,
        native(web_server, made, "job:1") as stays,
    ):
        await ends.wait_synced()
        await stays.wait_synced()
        await stays.send({"op": "auth", "token": fresh})
        assert await closed(ends) == 4402
        assert stays.closed is None
        await publisher.publish("job:1", 1)
        await stays.wait_for_offset("job:1", 4)
        await stays.send({"op": "auth", "token": rt.token_for("job:2")})
        assert await closed(stays) == 4403
    assert (await refusal(web_server.native_url + f"?token={made}"))[0] == 4402


async def test_viewers_take_no_place_of_a_user(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    web_server.rt.web.limiter._viewers = 3
    made = web_server.rt.token_for("job:1")
    viewers = [native(web_server, made, "job:1") for _ in range(3)]
    for viewer in viewers:
        await viewer.open()
        await viewer.wait_synced()
    async with NativeClient(web_server, "job:1") as user:
        await user.wait_synced()
        one_more = native(web_server, made, "job:1")
        await one_more.open()
        assert await closed(one_more) == 4429
    for viewer in viewers:
        await viewer.close()


@pytest.mark.parametrize("given", [{}, {"topic_secrets": ""}])
def test_without_a_secret_no_token_is_made(given: dict[str, Any]) -> None:
    rt = Realtime(make_settings("memory://", backend="memory", **given))
    with pytest.raises(ConfigError, match="set SEMANTIK_REALTIME_TOPIC_SECRETS"):
        rt.token_for("job:1")
    rt.close()


async def test_a_short_secret_is_refused_at_start() -> None:
    rt = Realtime(make_settings("memory://", backend="memory", topic_secrets="short"))
    with pytest.raises(ConfigError, match="32 bytes"):
        rt.web.access.check()
    with pytest.raises(ConfigError, match="32 bytes"):
        rt.token_for("job:1")
    rt.close()


async def test_secrets_for_topics_are_enough_and_then_nobody_else_gets_in() -> None:
    settings = make_settings("memory://", backend="memory", topic_secrets=NEW, jwt_secret=None)
    rt = Realtime(settings)
    access = rt.web.access
    access.check()
    made = rt.token_for("job:1")
    assert made.startswith(PREFIX)
    assert (await access.authenticate(Credentials(made))).user
    with pytest.raises(AccessError) as caught:
        await access.authenticate(Credentials(token("7")))
    assert caught.value.code == "unauthenticated"
    rt.close()
