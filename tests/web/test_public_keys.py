"""Tokens that the keys of a URL verify: unknown ids, keys that change, a server that is away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from clients import refusal
from configuration import make_settings, token
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwks_server import KEY, JwksServer, rsa_token
from publisher import Publisher
from waiting import until
from web_servers import serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError, BackendUnavailable, ConfigError
from semantik_realtime.hookspecs import Credentials
from semantik_realtime.testing.servers import free_port
from semantik_realtime.web import public_keys
from semantik_realtime.web.access import Access

PUBLIC = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.fixture
def jwks_server() -> Iterator[JwksServer]:
    made = JwksServer()
    yield made
    made.close()


def make_access(url: str | None, **given: Any) -> Access:
    given = {"jwt_secret": None, "jwt_jwks_url": url, "jwt_algorithms": ["RS256"], **given}
    settings = make_settings("redis://127.0.0.1:1/0", backend="memory", **given)
    return Access(settings, Realtime(settings).plugins)


async def user_of(rules: Access, credential: str) -> str:
    return (await rules.authenticate(Credentials(credential))).user


async def refusal_reason(rules: Access, credential: str) -> str:
    with pytest.raises(AccessError) as caught:
        await rules.authenticate(Credentials(credential))
    return caught.value.code


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch again after a tenth of a second."""
    monkeypatch.setattr(public_keys, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(public_keys, "FRESH_SECONDS", 0.1)


async def test_a_token_signed_with_the_public_key_is_refused(jwks_server: JwksServer) -> None:
    def text(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    head = text(b'{"alg":"HS256","typ":"JWT","kid":"k1"}')
    claims = text(json.dumps({"sub": "8", "exp": time.time() + 60}).encode())
    signature = text(hmac.digest(PUBLIC, head + b"." + claims, hashlib.sha256))
    forged = b".".join((head, claims, signature)).decode()
    by_keys = make_access(jwks_server.url)
    assert await refusal_reason(by_keys, forged) == "unauthenticated"
    both = make_access(None, jwt_secret=PUBLIC.decode(), jwt_algorithms=["RS256", "HS256"])
    assert await user_of(both, rsa_token()) == "7"
    assert await refusal_reason(both, forged) == "unauthenticated"


async def test_only_tokens_of_the_fetched_public_keys_are_accepted(jwks_server: JwksServer) -> None:
    rules = make_access(jwks_server.url, jwt_algorithms=["RS256", "ES256"])
    assert await user_of(rules, rsa_token()) == "7"
    other_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert await refusal_reason(rules, rsa_token(other_key)) == "unauthenticated"
    assert await refusal_reason(rules, rsa_token(kid="k2")) == "unauthenticated"
    assert await refusal_reason(rules, token()) == "unauthenticated"
    assert await refusal_reason(rules, "rubbish") == "unauthenticated"
    assert await refusal_reason(rules, rsa_token(exp=1)) == "expired"


async def test_a_hundred_invented_key_ids_are_few_fetches(
    jwks_server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_keys, "PAUSE_SECONDS", 0.5)
    rules = make_access(jwks_server.url)
    assert await user_of(rules, rsa_token()) == "7"
    began = time.monotonic()
    tokens = [rsa_token(kid=f"invented{number}") for number in range(100)]
    reasons = await asyncio.gather(*(refusal_reason(rules, each) for each in tokens))
    assert set(reasons) == {"unauthenticated"}
    # The second one if all have asked before it began, and else a third.
    assert jwks_server.requests in (2, 3)
    for each in tokens[:4]:
        assert await refusal_reason(rules, each) == "unauthenticated"
        assert await user_of(rules, rsa_token()) == "7"
    assert jwks_server.requests <= 3 + (time.monotonic() - began) / 0.5


async def test_a_token_that_no_key_could_verify_causes_no_fetch(jwks_server: JwksServer) -> None:
    rules = make_access(jwks_server.url)
    for credential in (token(), "rubbish", "\ud800.a.b", "W1tb.a.b", ""):
        assert await refusal_reason(rules, credential) == "unauthenticated"
    assert jwks_server.requests == 0


async def test_the_first_tokens_share_one_fetch(jwks_server: JwksServer) -> None:
    rules = make_access(jwks_server.url)
    jwks_server.may_answer.clear()
    users = [asyncio.create_task(user_of(rules, rsa_token())) for _ in range(50)]
    await until(lambda: jwks_server.requests)
    await asyncio.sleep(0.1)
    jwks_server.may_answer.set()
    assert set(await asyncio.gather(*users)) == {"7"}
    assert jwks_server.requests == 1


async def test_a_new_key_is_accepted_and_an_old_one_refused_after_the_next_fetch(
    jwks_server: JwksServer, short_times: None
) -> None:
    rules = make_access(jwks_server.url)
    assert await user_of(rules, rsa_token()) == "7"
    new_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    jwks_server.keys = {"k2": new_key}
    assert await user_of(rules, rsa_token(new_key, kid="k2")) == "7"
    assert await refusal_reason(rules, rsa_token()) == "unauthenticated"


async def test_a_key_server_that_hangs_delays_no_token_of_a_known_key(
    jwks_server: JwksServer, short_times: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_keys, "FETCH_SECONDS", 0.3)
    rules = make_access(jwks_server.url)
    assert await user_of(rules, rsa_token()) == "7"
    jwks_server.may_answer.clear()
    await asyncio.sleep(0.2)
    # The first one waits for the fetch, until its deadline.
    assert await user_of(rules, rsa_token()) == "7"
    before = jwks_server.requests
    began = time.monotonic()
    for _ in range(100):
        assert await user_of(rules, rsa_token()) == "7"
    assert time.monotonic() - began < 0.3 * 50
    assert jwks_server.requests <= before + 2 + (time.monotonic() - began) / 0.3
    with pytest.raises(BackendUnavailable):
        await user_of(rules, rsa_token(kid="k2"))
    jwks_server.may_answer.set()
    jwks_server.keys["k2"] = KEY

    async def has_new_key() -> bool:
        try:
            return await user_of(rules, rsa_token(kid="k2")) == "7"
        except BackendUnavailable:
            return False

    deadline = time.monotonic() + 10
    while not await has_new_key():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_old_keys_are_not_used_for_ever(
    jwks_server: JwksServer, short_times: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_keys, "KEEP_SECONDS", 0.2)
    rules = make_access(jwks_server.url)
    assert await user_of(rules, rsa_token()) == "7"
    jwks_server.body = b"<html>502</html>"
    await asyncio.sleep(0.3)
    with pytest.raises(BackendUnavailable):
        await user_of(rules, rsa_token())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"keys":[]}', b'{"keys":[{"kty":"x","kid":"k1"}]}', b"\xff" * 99]
)
async def test_an_answer_that_is_no_keys_refuses_nobody_for_good(
    jwks_server: JwksServer, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    jwks_server.body = body
    rules = make_access(jwks_server.url)
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            await user_of(rules, rsa_token())
    assert jwks_server.requests == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if line.startswith("access: keys not fetched")]) == 1


async def test_a_return_of_the_keys_is_logged(
    jwks_server: JwksServer, short_times: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    jwks_server.body = b"{}"
    rules = make_access(jwks_server.url)
    with pytest.raises(BackendUnavailable):
        await user_of(rules, rsa_token())
    jwks_server.body = None
    await asyncio.sleep(0.2)
    assert await user_of(rules, rsa_token()) == "7"
    assert "access: keys fetched again" in caplog.text


@pytest.mark.parametrize("url", ["keys.example/jwks", "file:///etc/passwd", "https://"])
def test_a_url_that_is_none_of_http_is_refused_at_the_start_and_not_when_it_is_imported(
    url: str,
) -> None:
    rules = make_access(url)
    with pytest.raises(ConfigError, match="JWT_JWKS_URL begins with https"):
        rules.check()


async def test_connections_are_refused_temporarily_while_the_keys_cannot_be_fetched(
    settings: Settings, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    await publisher.publish("job:1", 1)
    port = free_port()
    away = {
        "jwt_secret": None,
        "jwt_jwks_url": f"http://127.0.0.1:{port}/",
        "jwt_algorithms": ["RS256"],
    }
    async with serve_realtime(settings.model_copy(update=away)) as web_server:
        assert (await refusal(web_server.native_url + f"?token={rsa_token()}"))[0] == 1011
        # Old versions of uvicorn cut the socket during the handshake (0).
        compat = await refusal(web_server.compat_url("1") + f"?token={rsa_token()}")
        assert compat[0] in (0, 1006)
        async with web_server.http_client() as http:
            headers = {"Authorization": f"Bearer {rsa_token()}"}
            for path in ("/realtime/jobs/1", "/realtime/jobs/1/history"):
                answer = await http.get(path, headers=headers)
                assert answer.status_code == 503
                # Where the keys are is the operator's, who finds it in the log.
                assert "refused" not in answer.text
                assert str(port) not in answer.text
    assert f"url=http://127.0.0.1:{port}/" in caplog.text
