"""Users and jobs with the ids that applications have, on every wire."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from urllib.parse import quote

import pytest
from clients import CompatClient, NativeClient
from configuration import token
from web_servers import serve_realtime

from semantik_realtime.client import watch
from semantik_realtime.config import Settings
from semantik_realtime.core.topic import job_topic, user_topic

IDS = [("auth0|5f7c", "import:42"), ("us-east-1:8f", "a/b c"), ("Zoë", ".hidden"), ("org:7", "~41")]


@pytest.mark.every_row
@pytest.mark.parametrize(("user", "job"), IDS, ids=ascii)
async def test_a_user_watches_a_job_by_their_plain_ids(
    settings: Settings, user: str, job: str
) -> None:
    fed = settings.model_copy(update={"compat_feed_path": ["/ws/operations"]})
    async with serve_realtime(fed) as web_server, web_server.http_client(user=user) as http:
        state = {"status": "running", "attempt": 1}
        receipt = await web_server.rt.publish(
            f"job:{job}", "job_started", state=state, owner=user, also=[f"user:{user}"]
        )
        assert receipt.outcome == "appended"
        for path in (quote(job, safe=""), quote(job), quote(job_topic(job)[4:])):
            answer = await http.get(f"/realtime/jobs/{path}")
            assert answer.status_code == 200, path
            assert answer.json()["states"] == {job: state}
            history = (await http.get(f"/realtime/jobs/{path}/history")).json()["events"]
            assert [event["key"] for event in history] == [job]
        async with NativeClient(web_server, job_topic(job), user_topic(user), user=user) as native:
            await native.wait_synced()
            for topic in (job_topic(job), user_topic(user)):
                assert native.views[topic].states == {job: state}
        for topic in (f"job:{job}", f"user:{user}"):
            updates = watch(web_server.native_url, topic, token=token(user))
            async with asyncio.timeout(10), aclosing(updates):
                async for update in updates:
                    assert update.view.states == {job: state}
                    break
        async with CompatClient(web_server.compat_url(quote(job)), user=user) as browser:
            assert (await browser.wait_for("current_state"))["data"]["status"] == "running"
        async with CompatClient(web_server.compat_url("", "/ws/operations"), user=user) as browser:
            assert (await browser.wait_for("current_state"))["data"]["job_id"] == job
        async with CompatClient(web_server.compat_url(quote(job)), user="8") as other:
            assert await other.wait_closed() == 1008
        assert await web_server.rt.delete(job)
        assert (await http.get(f"/realtime/jobs/{quote(job)}")).status_code == 404
