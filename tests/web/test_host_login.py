"""The user that the host's own login names: who decides, until when, and what it may raise."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from clients import CompatClient, NativeClient, SseClient, refusal
from configuration import make_settings, token
from fastapi import FastAPI, HTTPException, WebSocketException
from publisher import Publisher
from starlette.exceptions import HTTPException as StarletteHTTPException
from waiting import until
from web_servers import serve, serve_realtime

from semantik_realtime import NO_OPINION, AccessError, Identity, Realtime, hookimpl
from semantik_realtime.config import Settings
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.hookspecs import Credentials
from semantik_realtime.web.access import Access


def login(answer: Any, *, is_async: bool = False) -> object:
    """Return a plugin whose ``authenticate`` returns ``answer``, or raises it."""

    def found() -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer

    class Plain:
        @hookimpl
        def authenticate(self) -> Any:
            return found()

    class Coroutine:
        @hookimpl
        async def authenticate(self) -> Any:
            return found()

    return Coroutine() if is_async else Plain()


def make_access(*plugins: object, **given: Any) -> Access:
    settings = make_settings("redis://127.0.0.1:1/0", backend="memory", **given)
    return Access(settings, Realtime(settings, plugins=plugins).plugins)


async def outcome(rules: Access, credential: str | None = None) -> str:
    """Return the user id, or the code of the refusal."""
    try:
        return (await rules.authenticate(Credentials(credential))).user
    except AccessError as error:
        return error.code


# Who decides.


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], "from the token"),
        ([None], "unauthenticated"),
        ([NO_OPINION], "from the token"),
        (["7"], "7"),
        ([None, "7"], "7"),
        (["7", None], "7"),
        ([NO_OPINION, "7"], "7"),
        ([None, NO_OPINION], "unauthenticated"),
        ([NO_OPINION, None], "unauthenticated"),
        ([None, None], "unauthenticated"),
        ([NO_OPINION, NO_OPINION], "from the token"),
        (["first", "last"], "last"),
        ([AccessError("no"), None, "7"], "7"),
        (["7", AccessError("no")], "forbidden"),
    ],
)
async def test_the_last_plugin_is_asked_first_and_without_a_user_none_means_no(
    answers: list[Any], expected: str, is_async: bool
) -> None:
    rules = make_access(*(login(answer, is_async=is_async) for answer in answers))
    assert await outcome(rules, token("from the token")) == expected


async def test_a_refresh_token_that_the_hosts_login_refuses_gets_nobody_in(
    settings: Settings, publisher: Publisher
) -> None:
    def authenticate(credentials: Credentials) -> str | None:
        claims = jwt.decode(credentials.token or "", options={"verify_signature": False})
        return claims["sub"] if claims.get("type") == "access" else None

    await publisher.publish("job:1", 1)
    app = FastAPI()
    rt = Realtime(settings)
    app.include_router(rt.router(authenticate=authenticate))
    app.state.realtime = rt
    async with serve(app) as web_server, web_server.http_client() as http:
        # Signed with the secret of the settings, so the built-in rule would accept both.
        for kind, code, status in (("refresh", 4401, 401), ("access", None, 200)):
            query = f"?token={token(type=kind)}"
            async with NativeClient(web_server, "job:1", query=query) as client:
                await until(lambda client=client: client.closed or client.syncs)
                assert client.closed == code
            headers = {"Authorization": f"Bearer {token(type=kind)}"}
            assert (await http.get("/realtime/jobs/1", headers=headers)).status_code == status


async def test_plugins_that_authorize_asynchronously_are_asked_one_after_the_other() -> None:
    class Nothing:
        @hookimpl
        async def authorize(self) -> None:
            return None

    class Open:
        @hookimpl
        async def authorize(self, topic: str) -> bool | None:
            return topic == "job:open"

    rules = make_access(Open(), Nothing(), Nothing())
    assert await rules.authorize("7", "job:open", None)
    assert not await rules.authorize("7", "job:closed", "7")


async def test_a_wrapper_takes_part_in_each_plugins_answer() -> None:
    seen: list[Any] = []

    class Audit:
        @hookimpl(wrapper=True)
        def authenticate(self) -> Any:
            answer = yield
            seen.append(answer)
            return answer

    rules = make_access(login("7"), login(None), Audit())
    assert await outcome(rules) == "7"
    assert seen == [None, "7"]


# Who it is.


@pytest.mark.parametrize("user", ["7", 7, uuid.UUID(int=7), "auth0|5f7c"])
async def test_a_user_id_is_a_text_an_integer_or_a_uuid(user: Any) -> None:
    assert await outcome(make_access(login(user))) == str(user)
    assert await outcome(make_access(login(Identity(user)))) == str(user)


class Account:
    id = 7


@pytest.mark.parametrize(
    "user", [Account(), True, False, "", 1.5, b"7", ("7", 1), {"id": 7}, "a\nb", "x" * 201]
)
@pytest.mark.parametrize("as_identity", [False, True])
async def test_what_names_no_user_is_refused_and_logged_once(
    user: Any, as_identity: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answer = Identity(user) if as_identity else user
    rules = make_access(login(answer))
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            await outcome(rules)
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"access: authenticate returned no user: type={type(answer).__name__}" in line.message


# Until when.


def soon(form: Callable[[float], Any], seconds: float = 1.5) -> Identity:
    return Identity(7, form(time.time() + seconds))


@pytest.mark.parametrize(
    "form",
    [float, lambda at: datetime.fromtimestamp(at, UTC)],
    ids=["seconds", "a time with its zone"],
)
async def test_an_identity_that_expires_ends_the_connections_of_every_wire(
    settings: Settings, publisher: Publisher, form: Callable[[float], Any]
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        serve_realtime(settings, plugins=[login(lambda: soon(form))]) as web_server,
        NativeClient(web_server, "job:1", query="") as native,
        SseClient(web_server, "job:1") as stream,
        CompatClient(web_server.compat_url("1"), user=None) as compat,
    ):
        await native.wait_synced()
        await stream.wait_synced()
        await compat.wait_for("current_state")
        await until(lambda: native.closed)
        assert native.closed == 4402
        assert (await stream.wait_ended())["code"] == 4402
        assert await compat.wait_closed() == 1008


async def test_a_refreshed_identity_keeps_the_connection(
    settings: Settings, publisher: Publisher
) -> None:
    class Sessions:
        @hookimpl
        async def authenticate(self, credentials: Credentials) -> Identity | None:
            seconds = {"short": 1.5, "long": 60.0}.get(credentials.token or "")
            return None if seconds is None else Identity("7", time.time() + seconds)

    await publisher.publish("job:1", 1)
    async with (
        serve_realtime(settings, plugins=[Sessions()]) as web_server,
        NativeClient(web_server, "job:1", query="?token=short") as client,
    ):
        await client.wait_synced()
        [connection] = web_server.rt.web.hub.connections
        await client.send({"op": "auth", "token": "long"})
        await until(lambda: connection.identity.expires_at > time.time() + 30)
        first_end = time.time() + 1.5
        await until(lambda: time.time() > first_end + 2, 10)
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", 2)
        assert client.closed is None


async def test_an_identity_that_has_expired_is_refused_as_expired(
    settings: Settings,
) -> None:
    expired = login(lambda: soon(float, -1))
    assert await outcome(make_access(expired)) == "expired"
    async with serve_realtime(settings, plugins=[expired]) as web_server:
        assert (await refusal(f"{web_server.native_url}?token=x"))[0] == 4402


@pytest.mark.parametrize("expires_at", [datetime(2099, 1, 1), "2099", float("nan"), True])
async def test_an_expiry_that_is_no_time_refuses(
    expires_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rules = make_access(login(Identity("7", expires_at)))
    with pytest.raises(BackendUnavailable):
        await outcome(rules)
    assert "expires_at is in seconds since 1970, or a datetime with its zone" in caplog.text


# What it may raise.


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (AccessError("no"), 4403, 403),
        (AccessError("no", "unauthenticated"), 4401, 401),
        (AccessError("no", "expired"), 4402, 401),
        (AccessError("no", "of the host's own"), 4403, 403),
        (HTTPException(401, "no"), 4401, 401),
        (StarletteHTTPException(401, "no"), 4401, 401),
        (HTTPException(403, "no"), 4403, 403),
        (HTTPException(400, "no"), 4403, 403),
        (HTTPException(404, {"reason": "no"}), 4403, 403),
        (WebSocketException(1008, "no"), 4401, 401),
        (jwt.ExpiredSignatureError("no"), 4402, 401),
        (jwt.InvalidAudienceError("no"), 4401, 401),
        (HTTPException(429, "busy"), 1011, 503),
        (HTTPException(500, "no"), 1011, 503),
        (HTTPException(503, "no"), 1011, 503),
        (jwt.PyJWKClientConnectionError("away"), 1011, 503),
        (RuntimeError("the database is away"), 1011, 503),
        (PermissionError("a file"), 1011, 503),
        (asyncio.CancelledError("a pool is being closed"), 1011, 503),
    ],
    ids=repr,
)
async def test_a_login_function_refuses_as_it_does_in_the_hosts_own_routes(
    settings: Settings, error: BaseException, code: int, status: int
) -> None:
    async with (
        serve_realtime(settings, plugins=[login(error, is_async=True)]) as web_server,
        web_server.http_client() as http,
    ):
        url = f"{web_server.native_url}?token=x"
        assert (await refusal(url))[0] == code
        for path in ("/realtime/jobs/1", "/realtime/jobs/1/history"):
            assert (await http.get(path)).status_code == status
        # A stream that nobody can tell about begins, and says goodbye.
        stream = await http.get("/realtime/events?topic=job:1")
        assert stream.status_code == (200 if status == 503 else status)
        compat = (await refusal(web_server.compat_url("1") + "?token=x"))[0]
        assert compat == 1008 if status != 503 else compat in (0, 1006)


@pytest.mark.parametrize("code", [401, 403])
async def test_a_refreshed_credential_that_the_login_refuses_ends_the_connection(
    settings: Settings, code: int
) -> None:
    class Sessions:
        @hookimpl
        def authenticate(self, credentials: Credentials) -> str:
            if credentials.token != "first":
                raise HTTPException(code)
            return "7"

    async with (
        serve_realtime(settings, plugins=[Sessions()]) as web_server,
        NativeClient(web_server, query="?token=first") as client,
    ):
        await client.wait_for("welcome")
        await client.send({"op": "auth", "token": "second"})
        await until(lambda: client.closed)
        assert client.closed == 4000 + code


@pytest.mark.parametrize("code", [401, 403, 404])
async def test_an_authorize_that_raises_a_refusal_denies_the_topic_alone(
    settings: Settings, publisher: Publisher, code: int
) -> None:
    class Rules:
        @hookimpl
        async def authorize(self, topic: str) -> bool | None:
            if topic == "job:2":
                raise HTTPException(code)
            return None

    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    async with (
        serve_realtime(settings, plugins=[Rules()]) as web_server,
        web_server.http_client() as http,
        NativeClient(web_server, "job:1", "job:2") as client,
    ):
        await client.wait_synced("job:1")
        assert (await client.wait_for("denied"))["topic"] == "job:2"
        assert client.closed is None
        assert (await http.get("/realtime/jobs/2")).status_code == 404
        assert (await http.get("/realtime/jobs/1")).status_code == 200
