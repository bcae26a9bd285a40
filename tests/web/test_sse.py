"""Server-sent events: the guarantees of the native wire over plain HTTP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from clients import SseClient
from fastapi import FastAPI, Request
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve, serve_realtime, server_processes

from semantik_realtime import Realtime
from semantik_realtime.config import Settings

SEED = 20261125
JOB = "/realtime/jobs/1/events"


@pytest.mark.every_row
async def test_a_late_joiner_gets_the_state_then_history_then_each_event_once_in_order(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 30)
    async with SseClient(web_server, "job:1", path=JOB, history=5) as client:
        await client.wait_synced()
        await publisher.publish("job:1", 300)
        await client.wait_for_offset("job:1", 330)
        assert client.answer is not None
        headers = client.answer.headers
    [sync] = client.syncs
    assert (sync["reason"], sync["states"]["1"]["progress"]["current"]) == ("new", 30)
    assert [event["data"]["i"] for event in sync["events"]] == list(range(25, 30))
    assert client.numbers("job:1") == list(range(30, 330))
    assert not client.bad_batches
    # The id is the cursor; events that waited together came in one frame.
    assert client.last_id == client.views["job:1"].cursor
    assert len(client.ops("events")) < 300
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == (
        "no-store, no-transform",
        "no",
    )
    assert headers["content-encoding"] == "identity"
    assert 100 <= client.retries[0] <= 3000


@pytest.mark.every_backend(shares_storage=True)
async def test_a_stream_cut_at_random_points_and_resumed_by_its_last_id_misses_nothing(
    settings: Settings, publisher: Publisher
) -> None:
    total, rng, topics = 1500, random.Random(SEED), ("job:1", "user:7")
    for topic in topics:
        await publisher.publish(topic, 1)
    async with server_processes(2, settings) as servers:
        client = SseClient(servers[0], *topics)
        await client.open()
        await client.wait_synced()

        def behind() -> int:
            return max(publisher.count[topic] - client.views[topic].offset for topic in topics)

        async def publish() -> None:
            # Far enough ahead for a replay after each cut, and within what a replay may hold.
            while publisher.count["job:1"] < total:
                await until(lambda: behind() < 150)
                for topic in topics:
                    await publisher.publish(topic, min(20, total - publisher.count[topic]))

        publishing = asyncio.create_task(publish())
        while min(view.offset for view in client.views.values()) < total:
            at = client.views["job:1"].offset
            goal = min(total, at + rng.randrange(1, 100))
            await client.wait_for_offset("job:1", goal)
            if goal == total:
                await client.wait_for_offset("user:7", total)
            await client.abort()
            client.web_server = rng.choice(servers)
            await client.open()
        await publishing
        await client.close()
    assert not client.bad_batches
    for topic in topics:
        assert client.numbers(topic) == list(range(1, total))
    assert {sync["mode"] for sync in client.syncs[2:]} == {"replay"}
    # A stream is cut at most 270 events after the cut before: 100, and what was on its way.
    assert client.connections > 5


@pytest.mark.every_row
async def test_the_id_of_several_topics_has_their_cursors_in_the_order_of_the_query(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    await publisher.publish("job:3", 3)
    async with SseClient(web_server, "job:1", "job:2", "user:7", "job:3") as client:
        # A denied topic and a feed without events have no cursor.
        await client.wait_synced("job:1", "user:7", "job:3")
        await client.wait_for("denied")
        places = [client.views[topic].cursor for topic in ("job:1", "job:3")]
        assert client.last_id == f"{places[0]},,,{places[1]}"
        assert client.ops("denied")[0]["topic"] == "job:2"
    await publisher.publish("job:1", 2)
    async with SseClient(
        web_server, "job:1", "job:3", query={"cursor": f"{places[0]},{places[1]}"}
    ) as client:
        for view in client.views.values():
            view.offset = 3
        await client.wait_synced()
        assert [sync["mode"] for sync in client.syncs] == ["replay", "replay"]
        assert client.numbers("job:1") == [3, 4]
        first = client.last_id
    async with SseClient(web_server, "job:1", path=JOB, query={"cursor": "rubbish"}) as client:
        await client.wait_synced()
        assert client.syncs[0]["reason"] == "epoch"
        # A browser reconnects to the same URL; its last id is newer than the cursor there.
        client.last_id = first.partition(",")[0]
        await client.abort()
        await client.open()
        await client.wait_synced()
        assert client.syncs[1]["mode"] == "replay"


async def test_a_topic_that_is_asked_for_by_two_names_has_one_place_in_the_id(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    topics = ("job:a~2Fb", "job:3")
    for topic in topics:
        await publisher.publish(topic, 3)
    names = {"topic": ["job:a/b", *topics]}
    async with SseClient(web_server, *topics, path="/realtime/events", query=names) as client:
        await client.wait_synced()
        assert client.last_id == ",".join(str(client.views[topic].cursor) for topic in topics)
        await client.abort()
        await client.open()
        await client.wait_synced()
        assert [sync["mode"] for sync in client.syncs[2:]] == ["replay", "replay"]


async def test_an_idle_stream_gets_comments_and_stays_open(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    patient = settings.model_copy(update={"heartbeat_seconds": 3600.0})
    async with serve_realtime(patient) as web_server, SseClient(web_server, "job:1") as client:
        await client.wait_synced()
        [connection] = web_server.rt.web.hub.connections
        assert connection._heartbeat_seconds == 15
    async with (
        serve_realtime(settings.model_copy(update={"heartbeat_seconds": 0.5})) as web_server,
        SseClient(web_server, "job:1") as client,
    ):
        await client.wait_synced()
        before = len(client.frames)
        await until(lambda: client.comments > 3)
        assert len(client.frames) == before
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", 2)
        assert client.connections == 1


@pytest.mark.every_row
async def test_a_client_that_disconnects_leaves_no_channel_or_connection_behind(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    hub = web_server.rt.web.hub
    for _ in range(15):
        async with SseClient(web_server, "job:1") as client:
            await client.wait_synced()
        await until(lambda: hub.topics == 0 and not hub.connections)
        await web_server.rt.web.limiter.close()
    assert hub.stats.closed["client"] == 15


async def test_a_host_with_middleware_around_its_routes_streams_too(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    app = FastAPI()
    rt = Realtime(settings).install(app)

    @app.middleware("http")
    async def around(request: Request, call_next: Callable[[Request], Any]) -> Any:
        answer = await call_next(request)
        answer.headers["X-Host"] = "there"
        return answer

    async with serve(app) as web_server:
        async with SseClient(web_server, "job:1") as client:
            await client.wait_synced()
            await publisher.publish("job:1", 1)
            await client.wait_for_offset("job:1", 2)
            assert client.answer is not None
            assert client.answer.headers["X-Host"] == "there"
        await until(lambda: not rt.web.hub.connections)
