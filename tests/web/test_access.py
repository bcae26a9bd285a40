"""Authentication by token: settings, signatures and claims, public keys, and open connections."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from clients import CompatClient, NativeClient, refusal
from configuration import SECRET, make_settings, token
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import FastAPI
from publisher import Publisher
from starlette.testclient import TestClient
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError, ConfigError
from semantik_realtime.hookspecs import Credentials, hookimpl
from semantik_realtime.testing.servers import free_port
from semantik_realtime.web.access import Access

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def rsa_token(key: Any = KEY, algorithm: str = "RS256", kid: str = "k1", **claims: Any) -> str:
    claims = {"sub": "7", "exp": time.time() + 60, **claims}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid})


@pytest.fixture
def jwks_url() -> Iterator[str]:
    """The URL of a server with one public key."""
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
    body = json.dumps({"keys": [{**key, "kid": "k1", "use": "sig", "alg": "RS256"}]}).encode()

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/keys"
    server.shutdown()
    server.server_close()
    thread.join()


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
    for change in ({"aud": "theirs"}, {"iss": "them"}, {"nbf": 10**11}):
        assert await refusal_reason(rules, token(**{**good, **change})) == "unauthenticated"
    assert await refusal_reason(rules, token(aud="ours")) == "unauthenticated"
    assert await refusal_reason(rules, token(seconds=-1, **good)) == "expired"


async def test_a_token_without_an_expiry_or_without_a_user_is_refused() -> None:
    rules = make_access()
    assert await refusal_reason(rules, jwt.encode({"sub": "7"}, SECRET)) == "unauthenticated"
    assert await refusal_reason(rules, jwt.encode({"exp": 10**11}, SECRET)) == "unauthenticated"
    for no_user in (None, "", True, ["7"], {"id": 7}, 1.5):
        assert await refusal_reason(rules, token(no_user)) == "unauthenticated", no_user


async def test_a_setting_names_the_claim_with_the_user() -> None:
    assert await user_of(make_access(jwt_user_claim="uid"), token("x", uid=12)) == "12"


async def test_an_unsigned_token_is_refused() -> None:
    unsigned = jwt.encode({"sub": "7", "exp": time.time() + 60}, None, "none")
    assert await refusal_reason(make_access(), unsigned) == "unauthenticated"
    assert await refusal_reason(make_access(jwt_algorithms=["none"]), unsigned) == "unauthenticated"


async def test_a_token_of_another_algorithm_is_refused() -> None:
    other = jwt.encode({"sub": "7", "exp": time.time() + 60}, SECRET * 2, "HS512")
    assert await refusal_reason(make_access(), other) == "unauthenticated"


async def test_a_token_signed_with_the_public_key_is_refused(jwks_url: str) -> None:
    import base64
    import hashlib
    import hmac

    def text(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    head = text(b'{"alg":"HS256","typ":"JWT","kid":"k1"}')
    claims = text(json.dumps({"sub": "8", "exp": time.time() + 60}).encode())
    signature = text(hmac.digest(PUBLIC, head + b"." + claims, hashlib.sha256))
    forged = b".".join((head, claims, signature)).decode()
    by_keys = make_access(jwt_secret=None, jwt_jwks_url=jwks_url, jwt_algorithms=["RS256"])
    assert await refusal_reason(by_keys, forged) == "unauthenticated"
    both = make_access(jwt_secret=PUBLIC.decode(), jwt_algorithms=["RS256", "HS256"])
    assert await user_of(both, rsa_token()) == "7"
    assert await refusal_reason(both, forged) == "unauthenticated"


async def test_only_tokens_of_the_fetched_public_keys_are_accepted(jwks_url: str) -> None:
    rules = make_access(jwt_secret=None, jwt_jwks_url=jwks_url, jwt_algorithms=["RS256", "ES256"])
    assert await user_of(rules, rsa_token()) == "7"
    other_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert await refusal_reason(rules, rsa_token(other_key)) == "unauthenticated"
    assert await refusal_reason(rules, rsa_token(kid="k2")) == "unauthenticated"
    assert await refusal_reason(rules, token()) == "unauthenticated"
    assert await refusal_reason(rules, "rubbish") == "unauthenticated"
    assert await refusal_reason(rules, rsa_token(exp=1)) == "expired"


async def test_connections_are_refused_temporarily_while_the_keys_cannot_be_fetched(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    away = {"jwt_jwks_url": f"http://127.0.0.1:{free_port()}/", "jwt_algorithms": ["RS256"]}
    async with serve_realtime(settings.model_copy(update=away)) as web_server:
        assert (await refusal(web_server.native_url + f"?token={rsa_token()}"))[0] == 1011
        assert (await refusal(web_server.compat_url("1") + f"?token={rsa_token()}"))[0] == 1006
        async with web_server.http_client() as http:
            headers = {"Authorization": f"Bearer {rsa_token()}"}
            assert (await http.get("/realtime/jobs/1", headers=headers)).status_code == 503


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
