"""Where a topic's log begins again, the owner may be another one: nothing reaches old watchers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from clients import CompatClient, NativeClient, SseClient
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime, without_delivery

from semantik_realtime.config import Settings
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.testing.contract import until_unknown

SETTINGS = {"grace_seconds": 0.3}
SECRET = "what Bob indexes"


async def expire(web_server: InProcessServer, publisher: Publisher, topic: str) -> None:
    """End the topic's job, and wait until its log has expired."""
    await publisher.end(topic)
    await until_unknown(web_server.rt.backend, topic)


async def publish_secret(publisher: Publisher, topic: str, owner: str) -> None:
    for _ in range(3):
        publisher.emit(topic, owner=owner, data={"i": -1, "text": SECRET})
    await publisher.flush()


@pytest.mark.every_backend
@pytest.mark.parametrize("delivery", ["live", "found by a resync"])
async def test_a_job_id_that_is_used_again_by_another_owner_does_not_reach_the_old_watchers(
    web_server: InProcessServer, publisher: Publisher, delivery: str
) -> None:
    topic = "job:1"
    await publisher.publish(topic, 3)
    async with (
        NativeClient(web_server, topic) as native,
        SseClient(web_server, topic) as stream,
        CompatClient(web_server.compat_url("1")) as compat,
    ):
        await native.wait_synced()
        await stream.wait_synced()
        await compat.wait_for("current_state")
        if delivery == "live":
            await expire(web_server, publisher, topic)
            await publish_secret(publisher, topic, "8")
        else:
            async with without_delivery(web_server, topic):
                await expire(web_server, publisher, topic)
                await publish_secret(publisher, topic, "8")
            # As after an outage.
            web_server.rt.web.hub.resync_all()
        assert (await native.wait_for("denied"))["topic"] == topic
        await stream.wait_for("denied")
        assert (await stream.wait_ended())["code"] == 4403
        assert await compat.wait_closed() == 1008
        # The next events are not sent either, and the connection goes on.
        await publish_secret(publisher, topic, "8")
        await native.send({"op": "ping"})
        await native.wait_for("pong")
        received = json.dumps([native.frames, stream.frames, compat.messages])
        assert SECRET not in received
        assert native.closed is None
        async with NativeClient(web_server, topic, user="8") as owner:
            await owner.wait_synced()


@pytest.mark.every_backend
async def test_a_job_id_that_is_used_again_by_its_owner_goes_on(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        await expire(web_server, publisher, "job:1")
        await publisher.publish("job:1", 3)
        await until(lambda: client.syncs[-1].get("reason") == "epoch", 10, lambda: client)
        await client.wait_for_offset("job:1", 3)
        assert not client.ops("denied")


async def test_a_log_that_begins_again_between_permission_and_reading_is_not_read_over_http(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = web_server.rt.web.hub
    turn = hub.reads.request_turn

    @contextlib.asynccontextmanager
    async def begin_again_first(user: str) -> AsyncIterator[None]:
        await expire(web_server, publisher, "job:1")
        await publish_secret(publisher, "job:1", "8")
        async with turn(user):
            yield

    async with web_server.http_client() as http:
        for path in ("/realtime/jobs/1", "/realtime/jobs/1/history"):
            await publisher.publish("job:1", 1)
            assert (await http.get(path)).status_code == 200
            with monkeypatch.context() as patched:
                patched.setattr(hub.reads, "request_turn", begin_again_first)
                assert (await http.get(path)).status_code == 404
            await publisher.end("job:1", owner="8")
            await until_unknown(web_server.rt.backend, "job:1")


class ByRecord:
    """A host that lets user 7 watch what has no owner yet; it can be made unable to answer."""

    def __init__(self) -> None:
        self.is_away = False
        self.owners_asked: list[str | None] = []

    @hookimpl
    async def authorize(self, user: str, topic: str, owner: str | None) -> bool:
        self.owners_asked.append(owner)
        if self.is_away and owner is not None:
            raise RuntimeError("the database is away")
        return owner in (None, user)


@pytest.mark.every_backend
async def test_a_topic_that_begins_is_authorized_by_its_owner_before_its_first_event_is_sent(
    settings: Settings,
) -> None:
    host = ByRecord()
    async with serve_realtime(settings, plugins=[host]) as web_server:
        publisher = Publisher(settings, web_server.rt)
        async with NativeClient(web_server, "job:mine", "job:other") as client:
            await client.wait_synced()
            await publish_secret(publisher, "job:other", "8")
            await publisher.publish("job:mine", 3)
            assert (await client.wait_for("denied"))["topic"] == "job:other"
            await client.wait_for_offset("job:mine", 3)
            # Live, not as a snapshot: an event without a state would be lost.
            assert client.numbers("job:mine") == [0, 1, 2]
            assert SECRET not in json.dumps(client.frames)


@pytest.mark.every_backend
async def test_who_watched_a_log_without_an_owner_gets_a_snapshot_when_it_gets_one(
    settings: Settings,
) -> None:
    async with serve_realtime(settings, plugins=[ByRecord()]) as web_server:
        publisher = Publisher(settings, web_server.rt)
        publisher.emit("job:1", owner=None, key="before")
        await publisher.flush()
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_synced()
            assert set(client.syncs[-1]["states"]) == {"before"}
            await publisher.publish("job:1", 2, owner="7")
            await until(lambda: client.syncs[-1].get("reason") == "epoch", 10, lambda: client)
            await client.wait_for_offset("job:1", 2)
            assert set(client.views["job:1"].states) == {"1"}
            assert not client.ops("denied")


@pytest.mark.parametrize("owner", ["7", "8"])
async def test_while_nobody_can_tell_whose_the_new_log_is_its_events_are_held(
    settings: Settings, owner: str
) -> None:
    host = ByRecord()
    async with serve_realtime(settings, plugins=[host]) as web_server:
        publisher = Publisher(settings, web_server.rt)
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_synced()
            host.is_away = True
            await publish_secret(publisher, "job:1", owner)
            await until(lambda: host.owners_asked.count(owner) >= 2, 10, "the host is asked again")
            await client.send({"op": "ping"})
            await client.wait_for("pong")
            assert not client.ops("events")
            assert not client.ops("denied")
            host.is_away = False
            if owner == "7":
                await client.wait_for_offset("job:1", 3)
                assert [event["data"]["text"] for event in client.applied["job:1"]] == [SECRET] * 3
            else:
                await client.wait_for("denied")
                assert SECRET not in json.dumps(client.frames)


async def test_unsubscribing_ends_the_question_whose_the_new_log_is(settings: Settings) -> None:
    host = ByRecord()
    async with serve_realtime(settings, plugins=[host]) as web_server:
        publisher = Publisher(settings, web_server.rt)
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_synced()
            host.is_away = True
            await publish_secret(publisher, "job:1", "8")
            await until(lambda: "8" in host.owners_asked, 10, "the host is asked")
            await client.send({"op": "unsubscribe", "topics": ["job:1"]})
            await client.send({"op": "ping"})
            await client.wait_for("pong")
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert "semantik-realtime-authorize" not in names
            assert not client.ops("denied")
