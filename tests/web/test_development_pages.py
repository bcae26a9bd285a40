"""Pages of a development server on another port, through its proxy and directly."""

from __future__ import annotations

from clients import refusal
from configuration import token
from publisher import Publisher
from web_servers import InProcessServer

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
