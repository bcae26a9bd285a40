"""Which pages may connect: the origin's scheme, host and port, behind a proxy and without one."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest
from clients import refusal
from configuration import make_settings, token
from fastapi import FastAPI
from starlette.requests import HTTPConnection
from web_servers import serve, serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.errors import ConfigError
from semantik_realtime.testing.certificate import write_certificate
from semantik_realtime.web.access import Access


def make_access(*allowed: str) -> Access:
    settings = make_settings("redis://127.0.0.1:1/0", backend="memory", allowed_origins=allowed)
    return Access(settings, Realtime(settings).plugins)


def request(
    origin: str | None, host: str = "app.example", scheme: str = "http", **more: str
) -> HTTPConnection:
    given: Mapping[str, str | None] = {"host": host, "origin": origin, **more}
    headers = [
        (name.replace("_", "-").encode(), value.encode())
        for name, value in given.items()
        if value is not None
    ]
    return HTTPConnection({"type": "http", "scheme": scheme, "headers": headers})


@pytest.mark.parametrize("scheme", ["https", "wss"])
def test_over_tls_only_an_https_page_of_the_host_may_connect(scheme: str) -> None:
    rules = make_access()
    assert rules.allows_origin(request("https://app.example", scheme=scheme))
    assert rules.allows_origin(request("https://app.example", "app.example:443", scheme))
    assert rules.allows_origin(request("https://APP.example:443", scheme=scheme))
    for other in (
        "http://app.example",
        "http://app.example:443",
        "https://app.example:8443",
        "https://evil.example",
        "https://app.example.evil.example",
        "https://evil.example@app.example.evil.example",
        "wss://app.example",
        "ftp://app.example",
        "//app.example",
        "app.example",
        "null",
        "",
        "https://",
        "https://[",
        "https://app.example:x",
    ):
        assert not rules.allows_origin(request(other, scheme=scheme)), other


@pytest.mark.parametrize("forwarded", ["https", "wss", "HTTPS", "https, http"])
def test_a_proxy_that_says_tls_makes_the_rule_strict_even_if_it_is_not_trusted(
    forwarded: str,
) -> None:
    rules = make_access()
    more = {"x_forwarded_proto": forwarded}
    assert rules.allows_origin(request("https://app.example", **more))
    assert not rules.allows_origin(request("http://app.example", **more))


def test_a_proxy_that_ends_tls_and_does_not_say_so_still_works() -> None:
    rules = make_access()
    assert rules.allows_origin(request("https://app.example"))
    assert rules.allows_origin(request("https://app.example:8443", "app.example:8443", "ws"))


def test_without_tls_the_port_counts_too() -> None:
    rules = make_access()
    assert rules.allows_origin(request("http://localhost:8000", "localhost:8000", "ws"))
    assert rules.allows_origin(request("http://[::1]:8000", "[::1]:8000"))
    assert rules.allows_origin(request("http://app.example", "app.example:80"))
    assert not rules.allows_origin(request("http://localhost:3000", "localhost:8000"))
    assert not rules.allows_origin(request("http://localhost", "localhost:8000"))
    assert not rules.allows_origin(request("http://app.example", ""))
    assert rules.allows_origin(request(None))


def test_a_forged_header_allows_no_page() -> None:
    rules = make_access()
    assert not rules.allows_origin(
        request("http://app.example", scheme="https", x_forwarded_proto="http")
    )
    assert not rules.allows_origin(request("https://evil.example", x_forwarded_host="evil.example"))


def test_listed_origins_are_compared_by_scheme_host_and_port() -> None:
    rules = make_access("https://Spa.example/", "http://localhost:3000")
    rules.check()
    assert rules.allows_origin(request("https://spa.example", scheme="https"))
    assert rules.allows_origin(request("http://localhost:3000", scheme="https"))
    assert not rules.allows_origin(request("http://spa.example"))
    assert not rules.allows_origin(request("http://localhost:3001"))
    assert make_access("*").allows_origin(request("https://evil.example"))


@pytest.mark.parametrize("entry", ["spa.example", "https://spa.example/app", "null", "https://"])
def test_a_listed_origin_that_would_never_match_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"SEMANTIK_REALTIME_ALLOWED_ORIGINS.*is no origin"):
        make_access(entry).check()


def test_a_refused_origin_is_logged_once_with_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    rules = make_access()
    for _ in range(3):
        rules.allows_origin(request("http://evil.example\nforged", scheme="https"))
    [record] = caplog.records
    line = record.getMessage()
    assert "origin='http://evil.example\\nforged' host='app.example' secure=True" in line
    assert "SEMANTIK_REALTIME_ALLOWED_ORIGINS" in line
    for number in range(1000):
        rules.allows_origin(request(f"http://evil{number}.example"))
    assert len(caplog.records) == 100


async def test_a_server_with_tls_of_its_own_refuses_an_http_page(
    settings: Settings, tmp_path: Path
) -> None:
    app = FastAPI()
    Realtime(settings).install(app)
    certificate, key = write_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with serve(app, ssl_certfile=certificate, ssl_keyfile=key) as web_server:
        own = f"127.0.0.1:{web_server.port}"
        url = f"wss://{own}/realtime/ws?token=x"
        assert await refusal(url, origin=f"http://{own}", ssl=trusting) == (403, "handshake")
        assert (await refusal(url, origin=f"https://{own}", ssl=trusting))[0] == 4401


async def test_a_real_server_refuses_an_http_page_behind_a_proxy_that_ends_tls(
    settings: Settings,
) -> None:
    async with serve_realtime(settings) as web_server:
        tls = {"X-Forwarded-Proto": "https"}
        own = f"127.0.0.1:{web_server.port}"
        for url in (web_server.native_url, web_server.compat_url("1")):
            refused = await refusal(url, origin=f"http://{own}", additional_headers=tls)
            assert refused == (403, "handshake")
            # The credential is looked at only after the origin.
            accepted = await refusal(
                f"{url}?token=x", origin=f"https://{own}", additional_headers=tls
            )
            assert accepted[0] in (4401, 1008)
        async with web_server.http_client() as http:
            query = {"topic": "job:1", "token": token()}
            for scheme, status in (("http", 403), ("https", 404)):
                headers = {**tls, "Origin": f"{scheme}://{own}"}
                answer = await http.get("/realtime/events", params=query, headers=headers)
                assert answer.status_code == status
