"""The host's record answers where the backend does not know a topic (hook recall)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from clients import CompatClient, NativeClient
from publisher import Publisher
from waiting import until
from web_servers import serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.errors import AccessError
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.web.host_hooks import HOST_SECONDS


def record_plugin(how: str, states: object) -> object:
    """A plugin whose ``recall`` returns or raises ``states`` for job:1; ``how``: sync or async."""

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
async def test_the_hosts_record_answers_for_a_topic_that_the_backend_does_not_know(
    settings: Settings, publisher: Publisher, how: str
) -> None:
    states = {"1": {"status": "completed", "fields": {"files": 4}}}
    plugins = [record_plugin(how, states), AllowAll()]
    async with (
        serve_realtime(settings, plugins=plugins) as web_server,
        web_server.http_client() as http,
    ):
        async with (
            NativeClient(web_server, "job:1", "job:2") as native,
            CompatClient(web_server.compat_url("1")) as browser,
        ):
            await native.wait_synced()
            syncs = {sync["topic"]: sync for sync in native.syncs}
            assert syncs["job:1"]["reason"] == "recalled"
            assert (syncs["job:1"]["cursor"], syncs["job:1"]["offset"]) == (None, 0)
            assert syncs["job:1"]["states"] == states
            assert syncs["job:2"]["reason"] == "new"
            assert syncs["job:2"]["states"] == {}
            current = await browser.wait_for("current_state")
            assert current["data"] == {"files": 4, "status": "completed"}
            # The job runs again, and its log begins.
            await publisher.publish("job:1", 3)
            await native.wait_for_offset("job:1", 3)
            assert native.numbers("job:1") == [0, 1, 2]
            await browser.wait_for("step", 3)
        unknown = await http.get("/realtime/jobs/2")
        assert unknown.status_code == 404
        known = await http.get("/realtime/jobs/1")
        assert known.json()["offset"] == 3


async def test_http_answers_from_the_hosts_record_too(settings: Settings) -> None:
    states = {"1": {"status": "completed"}}
    async with (
        serve_realtime(settings, plugins=[record_plugin("sync", states), AllowAll()]) as web_server,
        web_server.http_client() as http,
    ):
        answer = await http.get("/realtime/jobs/1")
    assert answer.status_code == 200
    assert answer.json() == {"topic": "job:1", "cursor": None, "offset": 0, "states": states}
    assert "etag" not in answer.headers


class Unreadable(dict[str, object]):
    """A row of a database that loads its members on access, and fails."""

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
async def test_a_record_that_fails_is_read_again_and_never_shown_as_empty(
    settings: Settings,
    states: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("semantik_realtime.web.hub.recalls.RECALL_RETRY_SECONDS", 0.2)
    plugin = record_plugin("sync", states)
    async with (
        serve_realtime(settings, plugins=[plugin, AllowAll()]) as web_server,
        web_server.http_client() as http,
    ):
        assert (await http.get("/realtime/jobs/1")).status_code == 503
        async with NativeClient(web_server, "job:1", "job:2") as client:
            await client.wait_synced("job:2")
            assert not client.views["job:1"].synced
            good = record_plugin("sync", {"1": {"status": "completed"}})
            with contextlib.ExitStack() as stack:
                manager = web_server.rt.plugins
                manager.unregister(plugin)
                manager.register(good)
                stack.callback(manager.unregister, good)
                await client.wait_synced("job:1")
            assert client.views["job:1"].states == {"1": {"status": "completed"}}
            assert client.connections == 1
    assert "outage: recall failed topic=job:1" in caplog.text
    assert "ERROR" not in {record.levelname for record in caplog.records}


async def test_a_record_that_hangs_delays_only_its_own_topics(
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
        serve_realtime(settings, plugins=[Hanging(), AllowAll()]) as web_server,
        NativeClient(web_server, *old, "job:live") as client,
        CompatClient(web_server.compat_url("old-1")) as browser,
    ):
        # Longer than the deadline of one call of the host.
        deadline = time.monotonic() + HOST_SECONDS + 1
        while time.monotonic() < deadline:
            began = time.monotonic()
            heartbeats = len(client.ops("tops"))
            await publisher.publish("job:live", 1)
            await client.wait_for_offset("job:live", publisher.count["job:live"], 2)
            await client.wait_for("tops", heartbeats + 1, 3)
            await browser.send("ping")
            await browser.wait_for("pong", len(browser.of_type("pong")) + 1, 2)
            assert time.monotonic() - began < 3
        assert asked == set(old)
        assert not any(client.views[topic].synced for topic in old)
        answers.set()
        await client.wait_synced()
        assert {sync["reason"] for sync in client.syncs[1:]} == {"recalled"}
        # The log of a recalled job begins, and its events follow the record.
        await publisher.publish(old[0], 3)
        await client.wait_for_offset(old[0], 3)
        assert client.numbers(old[0]) == [0, 1, 2]
        assert (await browser.wait_for("current_state"))["data"]["status"] == "completed"
        assert client.connections == 1
        # A client that unsubscribes while the record hangs leaves no channel behind.
        answers.clear()
        await client.subscribe("job:old-late")
        await until(lambda: "job:old-late" in asked)
        await client.send({"op": "unsubscribe", "topics": ["job:old-late"]})
        await until(lambda: "job:old-late" not in web_server.rt.web.hub._channels)
        answers.set()
        await publisher.publish("job:live", 1)
        await client.wait_for_offset("job:live", publisher.count["job:live"])
        assert not client.views["job:old-late"].synced
