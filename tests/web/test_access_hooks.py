"""The host's hooks authenticate and authorize: plain or async, refusing, failing, hanging."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from clients import NativeClient, refusal
from configuration import SECRET, make_settings, token
from publisher import Publisher
from waiting import until
from web_servers import serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.backends.loader import build_plugins
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError, BackendUnavailable, ConfigError
from semantik_realtime.hookspecs import NO_OPINION, Credentials, NoOpinion, hookimpl
from semantik_realtime.web.host_hooks import ask_host


class Sync:
    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        return credentials.headers.get("x-user")

    @hookimpl
    def authorize(self, user: str, topic: str, owner: str | None) -> bool | None:
        return True if topic == "collection:open" else None


class Async:
    @hookimpl
    async def authenticate(self, credentials: Credentials) -> str | None:
        await asyncio.sleep(0)
        return credentials.headers.get("x-user")

    @hookimpl
    async def authorize(self, user: str, topic: str, owner: str | None) -> bool | None:
        await asyncio.sleep(0)
        return True if topic == "collection:open" else None


@pytest.mark.parametrize("plugin", [Sync(), Async()], ids=["sync", "async"])
@pytest.mark.parametrize("jwt_secret", [SECRET, None])
async def test_none_of_authenticate_refuses_and_none_of_authorize_leaves_it_to_the_owner_rule(
    settings: Settings, publisher: Publisher, plugin: object, jwt_secret: str | None
) -> None:
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1, owner="8")
    settings = Settings(**{**settings.model_dump(), "jwt_secret": jwt_secret})
    async with serve_realtime(settings, plugins=[plugin]) as web_server:
        headers = {"X-User": "7"}
        topics = ("job:1", "job:2", "collection:open", "collection:closed")
        async with NativeClient(
            web_server, *topics, query="", additional_headers=headers
        ) as client:
            await client.wait_synced("job:1", "collection:open")
            await client.wait_for("denied", 2)
        # The token is one that the built-in rule would accept.
        async with NativeClient(web_server, "job:1") as client:
            await until(lambda: client.closed)
            assert client.closed == 4401


async def test_a_hook_that_raises_access_error_refuses_for_good(
    settings: Settings, publisher: Publisher
) -> None:
    class Refusing:
        @hookimpl
        def authenticate(self, credentials: Credentials) -> NoOpinion:
            if "x-banned" in credentials.headers:
                raise AccessError("banned", "unauthenticated")
            return NO_OPINION

        @hookimpl
        async def authorize(self, topic: str) -> bool | None:
            if topic == "job:2":
                raise AccessError("not this one")
            return None

    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    async with serve_realtime(settings, plugins=[Refusing()]) as web_server:
        banned = {"additional_headers": {"X-Banned": "1"}}
        query = f"?token={token()}"
        assert await refusal(web_server.native_url + query, **banned) == (4401, "banned")
        assert await refusal(web_server.compat_url("1") + query, **banned) == (1008, "banned")
        assert (await refusal(web_server.compat_url("2") + query))[0] == 1008
        async with NativeClient(web_server, "job:1", "job:2") as client:
            await client.wait_synced("job:1")
            assert (await client.wait_for("denied"))["topic"] == "job:2"


async def test_what_a_hooks_error_quotes_of_the_request_is_not_logged() -> None:
    class Quoting:
        @hookimpl
        def authenticate(self, credentials: Credentials) -> str:
            sessions: dict[str, str] = {}
            return sessions[f"{credentials.token} {credentials.headers['cookie']}"]

    plugins = build_plugins(MemoryBackend(Settings(backend="memory")), [Quoting()])
    given = Credentials("my-token", {"cookie": "session='my-session'"})
    with pytest.raises(BackendUnavailable) as caught:
        await ask_host(plugins, "authenticate", credentials=given)
    assert "KeyError" in str(caught.value)
    assert "my-" not in str(caught.value)


async def test_a_hook_that_fails_refuses_temporarily_and_only_the_log_says_why(
    settings: Settings, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"authenticate", "authorize"}
    # Old versions of uvicorn cut the socket during the handshake (0). A browser sees both as 1006.
    dropped = {0, 1006}

    class Failing:
        @hookimpl
        async def authenticate(self, credentials: Credentials) -> NoOpinion:
            if "authenticate" in broken:
                raise RuntimeError("the database is away")
            return NO_OPINION

        @hookimpl
        def authorize(self, user: str) -> bool | None:
            if "authorize" in broken:
                raise RuntimeError("the database is away")
            return None

    await publisher.publish("job:1", 1)
    async with (
        serve_realtime(settings, plugins=[Failing()]) as web_server,
        web_server.http_client() as http,
    ):
        query = f"?token={token()}"
        assert (await refusal(web_server.native_url + query))[0] == 1011
        assert (await refusal(web_server.compat_url("1") + query))[0] in dropped
        answer = await http.get("/realtime/jobs/1")
        # Strangers learn nothing of the host's insides.
        assert answer.status_code == 503
        assert "database" not in answer.text
        assert "the database is away" in caplog.text
        broken.remove("authenticate")
        assert (await refusal(web_server.compat_url("1") + query))[0] in dropped
        assert (await http.get("/realtime/jobs/1")).status_code == 503
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_for("welcome")
            broken.clear()
            await client.wait_synced()


async def test_a_hook_that_hangs_has_a_deadline(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging:
        @hookimpl
        async def authorize(self, topic: str) -> bool | None:
            if topic == "job:1":
                await asyncio.Event().wait()
            return None

    monkeypatch.setattr("semantik_realtime.web.host_hooks.HOST_SECONDS", 0.2)
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    async with (
        serve_realtime(settings, plugins=[Hanging()]) as web_server,
        web_server.http_client() as http,
        NativeClient(web_server, "job:1", "job:2") as client,
    ):
        await client.wait_synced("job:2")
        assert (await http.get("/realtime/jobs/1")).status_code == 503
        assert client.closed is None


def test_only_the_first_router_accepts_the_hosts_rules() -> None:
    rules: Callable[..., Any] = lambda *_: True  # noqa: E731
    rt = Realtime(make_settings("redis://127.0.0.1:1/0"))
    rt.router()
    with pytest.raises(ConfigError, match="first router"):
        rt.router(authorize=rules)
