"""Authentication by token: settings, signatures and claims, public keys, and open connections."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest
from clients import CompatClient, NativeClient
from configuration import SECRET, make_settings, token
from fastapi import FastAPI, Response
from publisher import Publisher
from starlette.testclient import TestClient
from waiting import until
from web_servers import InProcessServer, serve, serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError, ConfigError
from semantik_realtime.hookspecs import Credentials, hookimpl
from semantik_realtime.web.access import Access


def make_access(*plugins: object, **given: Any) -> Access:
    settings = make_settings("redis://127.0.0.1:1/0", backend="memory", **given)
    return Access(settings, Realtime(settings, plugins=plugins).plugins)


async def user_of(rules: Access, credential: str | None) -> str:
    return (await rules.authenticate(Credentials(credential))).user


async def refusal_reason(rules: Access, credential: str | None) -> str:
    with pytest.raises(AccessError) as caught:
        await rules.authenticate(Credentials(credential))
    return caught.value.code


# Settings.


def test_authentication_cannot_be_switched_off_in_production() -> None:
    with pytest.raises(
        ConfigError, match="DISABLE_AUTH is set, but the environment is 'production'"
    ):
        make_access(disable_auth=True).check()


@pytest.mark.parametrize("environment", ["development", "test", "Local"])
async def test_disable_auth_in_development_lets_every_user_watch_every_topic(
    environment: str,
) -> None:
    rules = make_access(disable_auth=True, environment=environment, jwt_secret=None)
    assert await user_of(rules, None) == "development"
    assert await rules.authorize("development", "job:1", "8")


def test_a_configuration_that_cannot_check_credentials_is_refused() -> None:
    with pytest.raises(ConfigError, match="set SEMANTIK_REALTIME_JWT_SECRET"):
        make_access(jwt_secret=None).check()


def test_symmetric_algorithms_are_refused_beside_public_keys() -> None:
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_JWT_ALGORITHMS=RS256"):
        make_access(jwt_jwks_url="http://127.0.0.1:1/keys").check()


@pytest.mark.parametrize(
    ("algorithms", "length", "is_enough"),
    [
        (["HS256"], 31, False),
        (["HS256"], 32, True),
        (["HS384"], 47, False),
        (["HS384"], 48, True),
        (["HS256", "HS512"], 63, False),
        (["HS512"], 64, True),
        (["RS256"], 5, True),
    ],
)
def test_a_secret_that_can_be_guessed_is_refused_in_production(
    algorithms: list[str], length: int, is_enough: bool
) -> None:
    rules = make_access(jwt_secret="s" * length, jwt_algorithms=algorithms)
    if is_enough:
        rules.check()
    else:
        with pytest.raises(ConfigError, match=f"JWT_SECRET is shorter than .*{algorithms[-1]}"):
            rules.check()


async def test_a_secret_that_can_be_guessed_is_one_warning_in_development(
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "secret"
    rules = make_access(jwt_secret=secret, environment="development")
    short = jwt.encode({"sub": "7", "exp": time.time() + 60}, secret)
    for _ in range(3):
        assert await user_of(rules, short) == "7"
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "JWT_SECRET is shorter than the 32 bytes" in line]) == 1
    assert secret not in caplog.text.lower().replace("jwt_secret", "")


def test_an_algorithm_that_does_not_exist_is_refused() -> None:
    for wrong in (["HS265"], []):
        with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_JWT_ALGORITHMS"):
            make_access(jwt_algorithms=wrong).check()


WRONG_ACCESS = [
    ({"jwt_secret": None}, "nothing can check a credential"),
    ({"disable_auth": True}, "DISABLE_AUTH is set"),
    ({"jwt_jwks_url": "http://127.0.0.1:1/keys"}, "would accept a public key"),
]


@pytest.mark.parametrize(("wrong", "fault"), WRONG_ACCESS)
async def test_a_worker_may_import_an_application_that_would_not_start(
    wrong: dict[str, Any], fault: str
) -> None:
    app = FastAPI()
    Realtime(make_settings("", backend="memory", **wrong)).install(app)
    with pytest.raises(ConfigError, match=fault):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize(("wrong", "fault"), WRONG_ACCESS)
async def test_without_a_lifespan_wrong_settings_let_nobody_in(
    wrong: dict[str, Any], fault: str
) -> None:
    app = FastAPI()
    Realtime(make_settings("", backend="memory", **wrong)).install(app)
    client = TestClient(app)
    for path in ("/realtime/jobs/1", "/realtime/events?topic=job:1", "/realtime/metrics"):
        with pytest.raises(ConfigError, match=fault):
            client.get(path)
    for path in (f"/realtime/ws?token={token()}", "/ws/jobs/1"):
        with pytest.raises(ConfigError, match=fault), client.websocket_connect(path) as socket:
            socket.receive_json()


# Tokens.


async def test_audience_issuer_and_times_are_checked() -> None:
    rules = make_access(jwt_audience="ours", jwt_issuer="us")
    good = {"aud": ["ours", "theirs"], "iss": "us", "iat": time.time() - 5}
    assert await user_of(rules, token(7, **good)) == "7"
    # The issuer's clock may be ahead of this one.
    assert await user_of(rules, token(7, **{**good, "iat": time.time() + 30})) == "7"
    # Also for nbf, but not without a limit.
    assert await user_of(rules, token(7, **{**good, "nbf": time.time() + 3})) == "7"
    late = {"nbf": time.time() + 60}
    for change in ({"aud": "theirs"}, {"iss": "them"}, late, {"nbf": 10**11}):
        assert await refusal_reason(rules, token(**{**good, **change})) == "unauthenticated"
    assert await refusal_reason(rules, token(aud="ours")) == "unauthenticated"
    assert await refusal_reason(rules, token(seconds=-1, **good)) == "expired"


async def test_an_expired_token_has_no_leeway_because_the_client_can_refresh_it() -> None:
    assert await refusal_reason(make_access(), token(seconds=-1)) == "expired"


@pytest.mark.parametrize(
    "credential",
    ["\ud800.a.b", "é.é.é", "...", "W1tb.a.b", "W1tb" * 9000 + ".a.b", "." * 60_000, "bearer", " "],
)
async def test_a_text_that_is_no_token_is_refused(credential: str) -> None:
    assert await refusal_reason(make_access(), credential) == "unauthenticated"


async def test_a_token_without_an_expiry_or_without_a_user_is_refused() -> None:
    rules = make_access()
    assert await refusal_reason(rules, jwt.encode({"sub": "7"}, SECRET)) == "unauthenticated"
    assert await refusal_reason(rules, jwt.encode({"exp": 10**11}, SECRET)) == "unauthenticated"
    for no_user in (None, "", True, ["7"], {"id": 7}, 1.5, "a\nb", "x" * 201):
        assert await refusal_reason(rules, token(no_user)) == "unauthenticated", no_user


async def test_a_setting_names_the_claim_with_the_user() -> None:
    assert await user_of(make_access(jwt_user_claim="uid"), token("x", uid=12)) == "12"


async def test_claims_that_the_server_does_not_use_may_have_any_type() -> None:
    unused = {"iat": "yesterday", "jti": 12, "aud": ["theirs"]}
    assert await user_of(make_access(), token(7, **unused)) == "7"


async def test_an_unsigned_token_is_refused() -> None:
    unsigned = jwt.encode({"sub": "7", "exp": time.time() + 60}, None, "none")
    assert await refusal_reason(make_access(), unsigned) == "unauthenticated"
    with pytest.raises(ConfigError, match="none is no algorithm that signs tokens; known are"):
        make_access(jwt_algorithms=["HS256", "none"]).check()


async def test_a_token_of_another_algorithm_is_refused() -> None:
    other = jwt.encode({"sub": "7", "exp": time.time() + 60}, SECRET * 2, "HS512")
    assert await refusal_reason(make_access(), other) == "unauthenticated"


# Where the token is.


@pytest.mark.parametrize(
    "cookie",
    [
        "access_token={}",
        "access_token=Bearer {}",
        'access_token="Bearer {}"',
        "access_token=bearer  {}",
        "access_token=Bearer%20{}",
        "other=1; access_token={}; more=2",
    ],
)
async def test_a_cookie_may_have_the_word_bearer_before_the_token(
    web_server: InProcessServer, publisher: Publisher, cookie: str
) -> None:
    await publisher.publish("job:1", 1)
    headers = {"Cookie": cookie.format(token())}
    async with NativeClient(web_server, "job:1", query="", additional_headers=headers) as native:
        await native.wait_synced()
    async with CompatClient(
        web_server.compat_url("1"), user=None, additional_headers=headers
    ) as compat:
        await compat.wait_for("current_state")
    async with web_server.http_client() as http:
        answer = await http.get("/realtime/jobs/1", headers={**headers, "Authorization": ""})
        assert answer.status_code == 200


async def test_a_cookie_that_fastapi_has_set_is_read(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    app = FastAPI()
    Realtime(settings.model_copy(update={"token_cookie": "session"})).install(app)

    @app.post("/login")
    async def login(response: Response) -> None:
        response.set_cookie("session", f"Bearer {token()}", httponly=True)

    async with serve(app) as web_server, web_server.http_client() as http:
        del http.headers["Authorization"]
        assert (await http.get("/realtime/jobs/1")).status_code == 401
        await http.post("/login")
        assert (await http.get("/realtime/jobs/1")).status_code == 200
        # The name is the setting's alone.
        other = {"Cookie": f"access_token={token()}"}
        http.cookies.clear()
        assert (await http.get("/realtime/jobs/1", headers=other)).status_code == 401


async def test_the_auth_frame_and_the_query_may_have_the_word_bearer_too(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1", query=f"?token=Bearer%20{token()}") as client:
        await client.wait_synced()
        await client.send({"op": "auth", "token": f"Bearer {token()}"})
        await client.send({"op": "ping"})
        await client.wait_for("pong")
        assert client.closed is None


async def test_blanks_for_a_token_occupy_the_server_no_longer_than_any_other_text(
    web_server: InProcessServer,
) -> None:
    began_at = time.process_time()
    async with NativeClient(web_server, query="") as client:
        await client.send({"op": "auth", "token": " " * 60_000})
        await until(lambda: client.closed is not None, 60)
    assert client.closed == 4401
    assert time.process_time() - began_at < 3


# On an open connection.


async def test_a_token_that_expires_ends_the_connection(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    short = f"?token={token(seconds=1.5)}"
    async with (
        NativeClient(web_server, "job:1", query=short) as native,
        CompatClient(web_server.compat_url("1") + short, user=None) as compat,
    ):
        await native.wait_synced()
        await until(lambda: native.closed)
        assert native.closed == 4402
        assert await compat.wait_closed() == 1008


async def test_a_fresh_token_keeps_the_connection(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1", query=f"?token={token(seconds=1.5)}") as client:
        await client.wait_synced()
        [connection] = web_server.rt.web.hub.connections
        await client.send({"op": "auth", "token": token(seconds=60)})
        await until(lambda: connection.identity.expires_at > time.time() + 30)
        # The hub checks expiries once a second, so two seconds after the first token's end.
        first_end = time.time() + 1.5
        await until(lambda: time.time() > first_end + 2, 10)
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", 2)
        assert client.closed is None
        assert len(client.ops("welcome")) == 1


@pytest.mark.parametrize(
    ("fresh", "code"),
    [(token("8"), 4403), ("rubbish", 4401), (token(seconds=-5), 4402)],
    ids=["of another user", "unreadable", "expired"],
)
async def test_a_wrong_fresh_token_ends_the_connection(
    web_server: InProcessServer, fresh: str, code: int
) -> None:
    async with NativeClient(web_server) as client:
        await client.wait_for("welcome")
        await client.send({"op": "auth", "token": fresh})
        await until(lambda: client.closed)
        assert client.closed == code


async def test_with_a_fresh_token_open_topics_are_authorized_again(
    settings: Settings, publisher: Publisher
) -> None:
    allowed = {"job:1", "job:2"}

    class Rules:
        @hookimpl
        async def authorize(self, user: str, topic: str) -> bool:
            return topic in allowed

    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    async with (
        serve_realtime(settings, plugins=[Rules()]) as web_server,
        NativeClient(web_server, "job:1", "job:2") as client,
    ):
        await client.wait_synced()
        allowed.remove("job:2")
        await client.send({"op": "auth", "token": token()})
        assert (await client.wait_for("denied"))["topic"] == "job:2"
        await publisher.publish("job:2", 1)
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", 2)
        assert client.numbers("job:2") == []
        assert client.closed is None
