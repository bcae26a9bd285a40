"""Who is who and who may what: tokens, keys, hooks and their failures."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import FastAPI
from fleet import (
    SECRET,
    Compat,
    Here,
    Native,
    Publisher,
    make_settings,
    refused,
    site_of,
    token,
    until,
)
from starlette.testclient import TestClient

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError, ConfigError
from semantik_realtime.hookspecs import Credentials, hookimpl
from semantik_realtime.testing.servers import free_port
from semantik_realtime.web.access import HOST_SECONDS, Access

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def signed(key: Any = KEY, algorithm: str = "RS256", kid: str = "k1", **claims: Any) -> str:
    claims = {"sub": "7", "exp": time.time() + 60, **claims}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid})


@pytest.fixture
def jwks_url() -> Iterator[str]:
    """A server with one public key."""
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


def access(*plugins: object, **given: Any) -> Access:
    settings = make_settings("redis://127.0.0.1:1/0", backend="memory", **given)
    return Access(settings, Realtime(settings, plugins=plugins).plugins)


async def who(rules: Access, credential: str | None) -> str:
    return (await rules.authenticate(Credentials(credential))).user


async def refusal(rules: Access, credential: str | None) -> str:
    with pytest.raises(AccessError) as caught:
        await rules.authenticate(Credentials(credential))
    return caught.value.code


# Settings.


def test_authentication_cannot_be_switched_off_in_production() -> None:
    with pytest.raises(
        ConfigError, match="DISABLE_AUTH is set, but the environment is 'production'"
    ):
        access(disable_auth=True).check()


@pytest.mark.parametrize("environment", ["development", "test", "Local"])
async def test_in_development_everyone_may_watch_everything(environment: str) -> None:
    rules = access(disable_auth=True, environment=environment, jwt_secret=None)
    assert await who(rules, None) == "development"
    assert await rules.authorize("development", "job:1", "8")


def test_without_anything_that_checks_a_credential_nothing_starts() -> None:
    with pytest.raises(ConfigError, match="set SEMANTIK_REALTIME_JWT_SECRET"):
        access(jwt_secret=None).check()


def test_a_public_key_is_never_taken_for_a_secret() -> None:
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_JWT_ALGORITHMS=RS256"):
        access(jwt_jwks_url="http://127.0.0.1:1/keys").check()


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
    rules = access(jwt_audience="ours", jwt_issuer="us")
    good = {"aud": ["ours", "theirs"], "iss": "us", "iat": time.time() - 5}
    assert await who(rules, token(7, **good)) == "7"
    # The issuer's clock may be ahead of ours.
    assert await who(rules, token(7, **{**good, "iat": time.time() + 30})) == "7"
    for change in ({"aud": "theirs"}, {"iss": "them"}, {"nbf": 10**11}):
        assert await refusal(rules, token(**{**good, **change})) == "unauthenticated"
    assert await refusal(rules, token(aud="ours")) == "unauthenticated"
    assert await refusal(rules, token(seconds=-1, **good)) == "expired"


async def test_a_token_without_an_end_or_without_a_user_is_refused() -> None:
    rules = access()
    assert await refusal(rules, jwt.encode({"sub": "7"}, SECRET)) == "unauthenticated"
    assert await refusal(rules, jwt.encode({"exp": 10**11}, SECRET)) == "unauthenticated"
    for nobody in (None, "", True, ["7"], {"id": 7}, 1.5):
        assert await refusal(rules, token(nobody)) == "unauthenticated", nobody


async def test_which_claim_names_the_user_is_a_setting() -> None:
    assert await who(access(jwt_user_claim="uid"), token("x", uid=12)) == "12"


async def test_an_unsigned_token_is_refused() -> None:
    unsigned = jwt.encode({"sub": "7", "exp": time.time() + 60}, None, "none")
    assert await refusal(access(), unsigned) == "unauthenticated"
    assert await refusal(access(jwt_algorithms=["none"]), unsigned) == "unauthenticated"


async def test_a_token_of_another_algorithm_is_refused() -> None:
    other = jwt.encode({"sub": "7", "exp": time.time() + 60}, SECRET * 2, "HS512")
    assert await refusal(access(), other) == "unauthenticated"


async def test_a_public_key_signs_nothing(jwks_url: str) -> None:
    import base64
    import hashlib
    import hmac

    def text(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    head = text(b'{"alg":"HS256","typ":"JWT","kid":"k1"}')
    claims = text(json.dumps({"sub": "8", "exp": time.time() + 60}).encode())
    signature = text(hmac.digest(PUBLIC, head + b"." + claims, hashlib.sha256))
    forged = b".".join((head, claims, signature)).decode()
    by_keys = access(jwt_secret=None, jwt_jwks_url=jwks_url, jwt_algorithms=["RS256"])
    assert await refusal(by_keys, forged) == "unauthenticated"
    both = access(jwt_secret=PUBLIC.decode(), jwt_algorithms=["RS256", "HS256"])
    assert await who(both, signed()) == "7"
    assert await refusal(both, forged) == "unauthenticated"


async def test_public_keys_are_fetched_and_only_their_tokens_pass(jwks_url: str) -> None:
    rules = access(jwt_secret=None, jwt_jwks_url=jwks_url, jwt_algorithms=["RS256", "ES256"])
    assert await who(rules, signed()) == "7"
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert await refusal(rules, signed(stranger)) == "unauthenticated"
    assert await refusal(rules, signed(kid="k2")) == "unauthenticated"
    assert await refusal(rules, token()) == "unauthenticated"
    assert await refusal(rules, "rubbish") == "unauthenticated"
    assert await refusal(rules, signed(exp=1)) == "expired"


async def test_while_the_keys_cannot_be_had_nobody_is_refused_for_good(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    away = {"jwt_jwks_url": f"http://127.0.0.1:{free_port()}/", "jwt_algorithms": ["RS256"]}
    async with site_of(settings.model_copy(update=away)) as site:
        assert (await refused(site.native + f"?token={signed()}"))[0] == 1011
        assert (await refused(site.compat("1") + f"?token={signed()}"))[0] == 1006
        async with site.client() as http:
            headers = {"Authorization": f"Bearer {signed()}"}
            assert (await http.get("/realtime/jobs/1", headers=headers)).status_code == 503


# While connected.


async def test_a_token_that_expires_ends_the_connection(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    short = f"?token={token(seconds=1.5)}"
    async with (
        Native(site, "job:1", query=short) as native,
        Compat(site.compat("1") + short, user=None) as compat,
    ):
        await native.synced()
        await until(lambda: native.closed)
        assert native.closed == 4402
        assert await compat.end() == 1008


async def test_a_fresh_token_keeps_the_connection(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1", query=f"?token={token(seconds=1.5)}") as client:
        await client.synced()
        [connection] = site.rt.web.hub.connections
        await client.send({"op": "auth", "token": token(seconds=60)})
        await until(lambda: connection.identity.expires_at > time.time() + 30)
        # Two ticks after the first token's end.
        first_end = time.time() + 1.5
        await until(lambda: time.time() > first_end + 2, 10)
        await publisher.publish("job:1", 1)
        await client.has("job:1", 2)
        assert client.closed is None
        assert len(client.ops("welcome")) == 1


@pytest.mark.parametrize(
    ("fresh", "code"),
    [(token("8"), 4403), ("rubbish", 4401), (token(seconds=-5), 4402)],
    ids=["anothers", "rubbish", "expired"],
)
async def test_a_wrong_fresh_token_ends_the_connection(site: Here, fresh: str, code: int) -> None:
    async with Native(site) as client:
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
        site_of(settings, plugins=[Rules()]) as site,
        Native(site, "job:1", "job:2") as client,
    ):
        await client.synced()
        allowed.remove("job:2")
        await client.send({"op": "auth", "token": token()})
        assert (await client.wait_for("denied"))["topic"] == "job:2"
        await publisher.publish("job:2", 1)
        await publisher.publish("job:1", 1)
        await client.has("job:1", 2)
        assert client.numbers("job:2") == []
        assert client.closed is None


# The host's hooks.


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
async def test_the_host_knows_who_asks_and_may_have_no_opinion(
    settings: Settings, publisher: Publisher, plugin: object, jwt_secret: str | None
) -> None:
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1, owner="8")
    settings = Settings(**{**settings.model_dump(), "jwt_secret": jwt_secret})
    async with site_of(settings, plugins=[plugin]) as site:
        headers = {"X-User": "7"}
        topics = ("job:1", "job:2", "collection:open", "collection:closed")
        async with Native(site, *topics, query="", additional_headers=headers) as client:
            await client.synced("job:1", "collection:open")
            await client.wait_for("denied", 2)
        async with Native(site, "job:1") as client:
            await until(lambda: client.closed or client.syncs)
            assert client.closed == (None if jwt_secret else 4401)


async def test_a_hook_that_refuses_is_believed(settings: Settings, publisher: Publisher) -> None:
    class Refusing:
        @hookimpl
        def authenticate(self, credentials: Credentials) -> str | None:
            if "x-banned" in credentials.headers:
                raise AccessError("banned", "unauthenticated")
            return None

        @hookimpl
        async def authorize(self, topic: str) -> bool | None:
            if topic == "job:2":
                raise AccessError("not this one")
            return None

    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    async with site_of(settings, plugins=[Refusing()]) as site:
        banned = {"additional_headers": {"X-Banned": "1"}}
        query = f"?token={token()}"
        assert await refused(site.native + query, **banned) == (4401, "banned")
        assert await refused(site.compat("1") + query, **banned) == (1008, "banned")
        assert (await refused(site.compat("2") + query))[0] == 1008
        async with Native(site, "job:1", "job:2") as client:
            await client.synced("job:1")
            assert (await client.wait_for("denied"))["topic"] == "job:2"


async def test_a_hook_that_fails_refuses_nobody_for_good(
    settings: Settings, publisher: Publisher
) -> None:
    broken = {"authenticate", "authorize"}
    # Older uvicorns cut the socket before the handshake is through (0); to a browser both are 1006.
    dropped = {0, 1006}

    class Failing:
        @hookimpl
        async def authenticate(self, credentials: Credentials) -> str | None:
            if "authenticate" in broken:
                raise RuntimeError("the database is away")
            return None

        @hookimpl
        def authorize(self, user: str) -> bool | None:
            if "authorize" in broken:
                raise RuntimeError("the database is away")
            return None

    await publisher.publish("job:1", 1)
    async with site_of(settings, plugins=[Failing()]) as site, site.client() as http:
        query = f"?token={token()}"
        assert (await refused(site.native + query))[0] == 1011
        assert (await refused(site.compat("1") + query))[0] in dropped
        assert (await http.get("/realtime/jobs/1")).status_code == 503
        broken.remove("authenticate")
        assert (await refused(site.compat("1") + query))[0] in dropped
        assert (await http.get("/realtime/jobs/1")).status_code == 503
        async with Native(site, "job:1") as client:
            await client.wait_for("welcome")
            broken.clear()
            await client.synced()


async def test_a_hook_that_hangs_has_a_deadline(
    settings: Settings, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging:
        @hookimpl
        async def authorize(self, topic: str) -> bool | None:
            if topic == "job:1":
                await asyncio.Event().wait()
            return None

    monkeypatch.setattr("semantik_realtime.web.access.HOST_SECONDS", 0.2)
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    async with (
        site_of(settings, plugins=[Hanging()]) as site,
        site.client() as http,
        Native(site, "job:1", "job:2") as client,
    ):
        await client.synced("job:2")
        assert (await http.get("/realtime/jobs/1")).status_code == 503
        assert client.closed is None


# The host's record.


def record(how: str, states: object) -> object:
    """A plugin with a record of job:1, as a plain function or as a coroutine."""

    class Plain:
        @hookimpl
        def recall(self, topic: str) -> Any:
            if topic != "job:1":
                return None
            if isinstance(states, BaseException):
                raise states
            return states

    class Later(Plain):
        @hookimpl
        async def recall(self, topic: str) -> Any:
            return Plain.recall(self, topic)

    return {"sync": Plain, "async": Later}[how]()


class AllowAll:
    @hookimpl
    def authorize(self) -> bool:
        return True


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_what_the_backend_does_not_know_the_hosts_record_answers(
    settings: Settings, publisher: Publisher, how: str
) -> None:
    states = {"1": {"status": "completed", "fields": {"files": 4}}}
    plugins = [record(how, states), AllowAll()]
    async with site_of(settings, plugins=plugins) as site, site.client() as http:
        async with (
            Native(site, "job:1", "job:2") as native,
            Compat(site.compat("1")) as browser,
        ):
            await native.synced()
            told = {sync["topic"]: sync for sync in native.syncs}
            assert told["job:1"]["reason"] == "recalled"
            assert (told["job:1"]["cursor"], told["job:1"]["offset"]) == (None, 0)
            assert told["job:1"]["states"] == states
            assert told["job:2"]["reason"] == "new"
            assert told["job:2"]["states"] == {}
            current = await browser.wait_for("current_state")
            assert current["data"] == {"files": 4, "status": "completed"}
            # The job is run again: its log begins.
            await publisher.publish("job:1", 3)
            await native.has("job:1", 3)
            assert native.numbers("job:1") == [0, 1, 2]
            await browser.wait_for("step", 3)
        unknown = await http.get("/realtime/jobs/2")
        assert unknown.status_code == 404
        known = await http.get("/realtime/jobs/1")
        assert known.json()["offset"] == 3


async def test_http_answers_from_the_hosts_record_too(settings: Settings) -> None:
    states = {"1": {"status": "completed"}}
    async with (
        site_of(settings, plugins=[record("sync", states), AllowAll()]) as site,
        site.client() as http,
    ):
        answer = await http.get("/realtime/jobs/1")
    assert answer.status_code == 200
    assert answer.json() == {"topic": "job:1", "cursor": None, "offset": 0, "states": states}
    assert "etag" not in answer.headers


class Unreadable(dict[str, object]):
    """A row whose members are fetched when they are wanted."""

    def items(self) -> Any:
        raise OSError("the database is away")


@pytest.mark.parametrize(
    "states",
    [
        RuntimeError("away"),
        AccessError("not for you"),
        asyncio.CancelledError(),
        {"1": object()},
        {"1": "text"},
        Unreadable({"1": {}}),
        [1],
    ],
    ids=lambda states: type(states).__name__,
)
async def test_a_record_that_fails_is_asked_again_and_never_shown_as_empty(
    settings: Settings,
    states: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("semantik_realtime.web.hub.connection.RECALL_RETRY_SECONDS", 0.2)
    plugin = record("sync", states)
    async with site_of(settings, plugins=[plugin, AllowAll()]) as site, site.client() as http:
        assert (await http.get("/realtime/jobs/1")).status_code == 503
        async with Native(site, "job:1", "job:2") as client:
            await client.synced("job:2")
            assert not client.views["job:1"].synced
            good = record("sync", {"1": {"status": "completed"}})
            with contextlib.ExitStack() as stack:
                manager = site.rt.plugins
                manager.unregister(plugin)
                manager.register(good)
                stack.callback(manager.unregister, good)
                await client.synced("job:1")
            assert client.views["job:1"].states == {"1": {"status": "completed"}}
            assert client.connections == 1
    assert "outage: recall failed topic=job:1" in caplog.text
    assert "ERROR" not in {record.levelname for record in caplog.records}


async def test_a_record_that_hangs_holds_up_only_what_it_was_asked_for(
    settings: Settings, publisher: Publisher
) -> None:
    class Hanging:
        @hookimpl
        async def recall(self, topic: str) -> dict[str, dict[str, str]]:
            asked.add(topic)
            await answers.wait()
            return {topic.partition(":")[2]: {"status": "completed"}}

    asked: set[str] = set()
    answers = asyncio.Event()
    old = [f"job:old-{number}" for number in range(12)]
    settings = settings.model_copy(update={"heartbeat_seconds": 0.1})
    await publisher.publish("job:live", 1)
    async with (
        site_of(settings, plugins=[Hanging(), AllowAll()]) as site,
        Native(site, *old, "job:live") as client,
        Compat(site.compat("old-1")) as browser,
    ):
        # Longer than the host may take for one answer.
        deadline = time.monotonic() + HOST_SECONDS + 1
        while time.monotonic() < deadline:
            began = time.monotonic()
            heartbeats = len(client.ops("tops"))
            await publisher.publish("job:live", 1)
            await client.has("job:live", publisher.count["job:live"], 2)
            await client.wait_for("tops", heartbeats + 1, 3)
            await browser.send("ping")
            await browser.wait_for("pong", len(browser.of("pong")) + 1, 2)
            assert time.monotonic() - began < 3
        assert asked == set(old)
        assert not any(client.views[topic].synced for topic in old)
        answers.set()
        await client.synced()
        assert {sync["reason"] for sync in client.syncs[1:]} == {"recalled"}
        # Their logs begin, and go on after what the record said.
        await publisher.publish(old[0], 3)
        await client.has(old[0], 3)
        assert client.numbers(old[0]) == [0, 1, 2]
        assert (await browser.wait_for("current_state"))["data"]["status"] == "completed"
        assert client.connections == 1
        # Who leaves meanwhile leaves nothing behind.
        answers.clear()
        await client.subscribe("job:old-late")
        await until(lambda: "job:old-late" in asked)
        await client.send({"op": "unsubscribe", "topics": ["job:old-late"]})
        await until(lambda: "job:old-late" not in site.rt.web.hub._channels)
        answers.set()
        await publisher.publish("job:live", 1)
        await client.has("job:live", publisher.count["job:live"])
        assert not client.views["job:old-late"].synced


def test_rules_are_given_to_the_first_router_only() -> None:
    rules: Callable[..., Any] = lambda *_: True  # noqa: E731
    rt = Realtime(make_settings("redis://127.0.0.1:1/0"))
    rt.router()
    with pytest.raises(ConfigError, match="first router"):
        rt.router(authorize=rules)
