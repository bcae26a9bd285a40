"""Pages of a development server on another port, through its proxy and directly."""

from __future__ import annotations

import pytest
from clients import NativeClient, SseClient, refusal
from configuration import make_settings, token
from publisher import Publisher
from starlette.requests import HTTPConnection
from web_servers import InProcessServer, serve_realtime

from semantik_realtime import Realtime
from semantik_realtime.config import Settings

SETTINGS = {"environment": "development"}
OTHER = "https://app.example"


async def test_in_development_a_browser_is_told_which_setting_refuses_its_page(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    reason = f"SEMANTIK_REALTIME_ALLOWED_ORIGINS does not have {OTHER}"
    query = f"?token={token()}"
    assert await refusal(web_server.native_url + query, origin=OTHER) == (4403, reason)
    assert await refusal(web_server.compat_url("1") + query, origin=OTHER) == (1008, reason)
    long = f"https://{'x' * 200}.example"
    assert (await refusal(web_server.native_url + query, origin=long))[0] == 4403
    async with web_server.http_client() as http:
        answer = await http.get("/realtime/jobs/1/events", headers={"Origin": OTHER})
        assert (answer.status_code, answer.json()["message"]) == (403, reason)
    assert web_server.rt.web.hub.stats.refused["origin"] == 4


@pytest.mark.parametrize(
    "page",
    ["http://localhost:5173", "http://127.0.0.1:3000", "http://[::1]:8080", "https://a.localhost"],
)
async def test_in_development_a_page_of_any_port_of_this_machine_may_connect(
    web_server: InProcessServer, publisher: Publisher, page: str
) -> None:
    """As the proxy of Next sends it, and those of Vite and webpack with ``changeOrigin``."""
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1", origin=page) as client:
        await client.wait_synced()
    headers = {"Authorization": f"Bearer {token()}", "Origin": page}
    async with SseClient(web_server, "job:1", headers=headers) as stream:
        await stream.wait_synced()
        assert stream.answer is not None
        assert stream.answer.headers["access-control-allow-origin"] == page


@pytest.mark.parametrize(
    ("host", "page", "environment"),
    [
        ("dev.example:8000", "http://localhost:5173", "development"),
        ("localhost:8000", "http://192.168.1.5:5173", "development"),
        ("localhost:8000", "http://localhost.evil.example", "development"),
        ("localhost:8000", "http://localhost@evil.example", "development"),
        ("localhost:8000", "null", "development"),
        ("localhost:8000", "http://[", "development"),
        ("localhost:8000", "http://localhost:5173", "production"),
        ("localhost:8000", "http://localhost:5173", "staging"),
    ],
)
def test_other_pages_may_not(host: str, page: str, environment: str) -> None:
    settings = make_settings("memory://", backend="memory", environment=environment)
    headers = [(b"host", host.encode()), (b"origin", page.encode())]
    connection = HTTPConnection({"type": "http", "scheme": "http", "headers": headers})
    assert not Realtime(settings).web.access.allows_origin(connection)


async def test_a_proxy_that_keeps_the_host_makes_the_pages_of_its_own_port_the_servers_own(
    settings: Settings, publisher: Publisher
) -> None:
    """As the proxies of Vite and webpack send it, without ``changeOrigin``; in production too."""
    await publisher.publish("job:1", 1)
    strict = settings.model_copy(update={"environment": "production"})
    async with serve_realtime(strict) as web_server:
        page = f"http://127.0.0.1:{web_server.port}"
        async with NativeClient(web_server, "job:1", origin=page) as client:
            await client.wait_synced()
        # With `changeOrigin` the host is the server's, and the origin still the page's.
        url = f"{web_server.native_url}?token={token()}"
        assert await refusal(url, origin="http://127.0.0.1:5173") == (403, "handshake")
