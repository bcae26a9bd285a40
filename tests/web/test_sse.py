"""Server-sent events: the guarantees, refusals and ends of the native wire over plain HTTP."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fleet import (
    Here,
    Native,
    Publisher,
    Stream,
    bystander,
    fleet_of,
    make_settings,
    one_draft,
    refused,
    serve,
    site_of,
    token,
    until,
)

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.testing.servers import ROWS, Server

SEED = 20261125
JOB = "/realtime/jobs/1/events"


# What arrives.


@pytest.mark.every_row
async def test_a_late_joiner_gets_the_state_then_history_then_each_event_once_in_order(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 30)
    async with Stream(site, "job:1", path=JOB, history=5) as client:
        await client.synced()
        await publisher.publish("job:1", 300)
        await client.has("job:1", 330)
        assert client.answer is not None
        headers = client.answer.headers
    [sync] = client.syncs
    assert (sync["reason"], sync["states"]["1"]["progress"]["current"]) == ("new", 30)
    assert [event["data"]["i"] for event in sync["events"]] == list(range(25, 30))
    assert client.numbers("job:1") == list(range(30, 330))
    assert not client.holes
    # The id is the cursor; what waited came in few frames.
    assert client.last_id == client.views["job:1"].cursor
    assert len(client.ops("events")) < 300
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    assert 100 <= client.retries[0] <= 3000


@pytest.mark.every_backend(shares_storage=True)
async def test_a_stream_cut_at_random_points_and_resumed_by_its_last_id_misses_nothing(
    settings: Settings, publisher: Publisher
) -> None:
    total, rng, topics = 1500, random.Random(SEED), ("job:1", "user:7")
    for topic in topics:
        await publisher.publish(topic, 1)
    async with fleet_of(2, settings) as servers:
        client = Stream(servers[0], *topics)
        await client.open()
        await client.synced()

        def behind() -> int:
            return max(publisher.count[topic] - client.views[topic].offset for topic in topics)

        async def publish() -> None:
            # So far ahead that every return finds a lot, never so far that it is not replayed.
            while publisher.count["job:1"] < total:
                await until(lambda: behind() < 300)
                for topic in topics:
                    await publisher.publish(topic, min(20, total - publisher.count[topic]))

        publishing = asyncio.create_task(publish())
        while min(view.offset for view in client.views.values()) < total:
            at = client.views["job:1"].offset
            goal = min(total, at + rng.randrange(1, 200))
            await client.has("job:1", goal)
            if goal == total:
                await client.has("user:7", total)
            await client.cut()
            client.site = rng.choice(servers)
            await client.open()
        await publishing
        await client.close()
    assert not client.holes
    for topic in topics:
        assert client.numbers(topic) == list(range(1, total))
    assert {sync["mode"] for sync in client.syncs[2:]} == {"replay"}
    assert client.connections > 10


@pytest.mark.every_row
async def test_the_id_of_several_topics_has_their_cursors_in_the_order_of_the_query(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    await publisher.publish("job:3", 3)
    async with Stream(site, "job:1", "job:2", "user:7", "job:3") as client:
        # Of no job and of a feed that has not begun there is no cursor.
        await client.synced("job:1", "user:7", "job:3")
        await client.wait_for("denied")
        places = [client.views[topic].cursor for topic in ("job:1", "job:3")]
        assert client.last_id == f"{places[0]},,,{places[1]}"
        assert client.ops("denied")[0]["topic"] == "job:2"
    await publisher.publish("job:1", 2)
    async with Stream(
        site, "job:1", "job:3", query={"cursor": f"{places[0]},{places[1]}"}
    ) as client:
        for view in client.views.values():
            view.offset = 3
        await client.synced()
        assert [sync["mode"] for sync in client.syncs] == ["replay", "replay"]
        assert client.numbers("job:1") == [3, 4]
        first = client.last_id
    async with Stream(site, "job:1", path=JOB, query={"cursor": "rubbish"}) as client:
        await client.synced()
        assert client.syncs[0]["reason"] == "epoch"
        # A browser comes back to the same URL: what it remembers is newer than that.
        client.last_id = first.partition(",")[0]
        await client.cut()
        await client.open()
        await client.synced()
        assert client.syncs[1]["mode"] == "replay"


async def test_an_idle_stream_gets_a_comment_and_lives_on(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    patient = settings.model_copy(update={"heartbeat_seconds": 3600.0})
    async with site_of(patient) as site, Stream(site, "job:1") as client:
        await client.synced()
        [connection] = site.rt.web.hub.connections
        assert connection._heartbeat_seconds == 15
    async with (
        site_of(settings.model_copy(update={"heartbeat_seconds": 0.5})) as site,
        Stream(site, "job:1") as client,
    ):
        await client.synced()
        seen = len(client.frames)
        await until(lambda: client.comments > 3)
        assert len(client.frames) == seen
        await publisher.publish("job:1", 1)
        await client.has("job:1", 2)
        assert client.connections == 1


@pytest.mark.every_row
async def test_who_leaves_leaves_nothing_behind(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    hub = site.rt.web.hub
    for _ in range(15):
        async with Stream(site, "job:1") as client:
            await client.synced()
        await until(lambda: hub.topics == 0 and not hub.connections)
        await site.rt.web.limiter.close()
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

    async with serve(app) as site:
        async with Stream(site, "job:1") as client:
            await client.synced()
            await publisher.publish("job:1", 1)
            await client.has("job:1", 2)
            assert client.answer is not None
            assert client.answer.headers["X-Host"] == "there"
        await until(lambda: not rt.web.hub.connections)


# Who is refused.


async def refusal(site: Here, *topics: str, **options: Any) -> Stream:
    """A stream that did not begin."""
    async with Stream(site, *topics, **options) as client:
        assert client.status != 200
        assert client.answer is not None
        await client.answer.aread()
        assert not client.frames
    return client


def said(client: Stream) -> tuple[bytes, list[tuple[str, str]]]:
    assert client.answer is not None
    headers = [header for header in client.answer.headers.items() if header[0] != "date"]
    return client.answer.content, headers


@pytest.mark.every_row
async def test_a_foreign_job_and_an_unknown_one_get_the_same_404_before_the_stream(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1, owner="8")
    async with bystander(site, publisher):
        for path in ("/realtime/jobs/{}/events", "/realtime/events?topic=job:{}"):
            first, second = [
                await refusal(site, path=path.format(job), headers=bearer()) for job in ("1", "2")
            ]
            assert first.status == second.status == 404
            assert said(first) == said(second)
        for several in (("job:1", "job:2", "user:8"), ("collection:1",)):
            assert (await refusal(site, *several)).status == 404
        refused = site.rt.web.hub.stats.refused
        assert (refused["forbidden"], refused["policy"]) == (6, 0)


def bearer(**options: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(**options)}"}


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({}, 401, "unauthenticated"),
        ({"Authorization": "Bearer rubbish"}, 401, "unauthenticated"),
        (bearer(seconds=-1), 401, "expired"),
        ({**bearer(), "Origin": "https://evil.example"}, 403, "origin"),
        ({**bearer(), "Origin": "null"}, 403, "origin"),
    ],
    ids=["nobody", "rubbish", "expired", "origin", "null"],
)
async def test_who_may_not_connect_is_refused_before_the_stream(
    site: Here, publisher: Publisher, headers: dict[str, str], status: int, reason: str
) -> None:
    await publisher.publish("job:1", 1)
    for path in (JOB, "/realtime/jobs/2/events"):
        assert (await refusal(site, path=path, headers=headers)).status == status
    assert site.rt.web.hub.stats.refused[reason] == 2


@pytest.mark.parametrize(
    "query", ["", "topic=", "topic=JOB:1", "topic=../x", "topic=job:1&history=1001", "many"]
)
async def test_a_wrong_query_is_422(site: Here, publisher: Publisher, query: str) -> None:
    await publisher.publish("job:1", 1)
    if query == "many":
        query = "&".join(f"topic=job:{number}" for number in range(101))
    client = await refusal(site, path=f"/realtime/events?{query}", headers=bearer())
    assert client.status == 422


async def test_the_token_travels_in_any_of_its_places(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    same = {"Origin": f"http://127.0.0.1:{site.port}"}
    for headers in (bearer(), {"Cookie": f"access_token={token()}", **same}, None):
        options = {} if headers is None else {"headers": headers}
        async with Stream(site, "job:1", **options) as client:
            await client.synced()


@pytest.mark.every_backend(shares_storage=True)
async def test_a_stream_takes_one_of_the_seats_that_a_user_has_over_the_fleet(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    settings = settings.model_copy(update={"max_connections": 3})
    async with fleet_of(2, settings) as (one, other), Native(one, "job:1") as native:
        await native.synced()
        async with Stream(one, "job:1") as first, Stream(other, "job:1") as second:
            await first.synced()
            await second.synced()
            for server in (one, other):
                async with Stream(server, "job:1") as late:
                    assert late.status == 429
                assert (await refused(server.native + f"?token={token()}"))[0] == 4429
            async with Stream(one, "user:8", user="8") as somebody:
                await somebody.synced()

        async def takes_another() -> bool:
            async with Stream(other, "job:1") as again:
                return again.status == 200

        for _ in range(200):
            if await takes_another():
                break
        else:
            raise AssertionError("a seat given back stays taken")


async def test_while_nobody_can_tell_who_asks_the_stream_says_when_to_come_back(
    settings: Settings, publisher: Publisher
) -> None:
    class Login:
        away = True

        @hookimpl
        async def authenticate(self) -> str:
            if self.away:
                raise OSError("no database")
            return "7"

    await publisher.publish("job:1", 1)
    login = Login()
    async with site_of(settings, plugins=[login]) as site, Stream(site, "job:1") as client:
        last = await client.ended()
        assert (client.status, last["op"], last["code"]) == (200, "bye", 1011)
        assert client.retries == [round(last["reconnect_seconds"] * 1000)]
        login.away = False
        await client.cut()
        await client.open()
        await client.synced()


# Troubles.


@pytest.mark.every_backend(shares_storage=True)
async def test_an_outage_is_told_shown_provisionally_and_made_up_for(
    server: Server, row: str
) -> None:
    class Record:
        @hookimpl
        def recall(self, topic: str) -> dict[str, Any] | None:
            progress = {"current": 5, "total": 90}
            return {"1": {"status": "running", "progress": progress}} if "1" in topic else None

        @hookimpl
        def authorize(self, topic: str, owner: str | None) -> bool | None:
            return True if owner is None and topic == "job:1" else None

    settings = make_settings(
        server.url, backend=ROWS[row].backend, timeout_seconds=1.0, tops_seconds=1.0, start_tries=1
    )
    publisher = Publisher(settings)
    await publisher.publish("job:1", 3)
    await publisher.publish("job:2", 3)
    async with (
        site_of(settings, plugins=[Record()]) as site,
        Stream(site, "job:1", path=JOB) as client,
    ):
        await client.synced()
        place = client.last_id
        server.kill()
        await client.wait_for("degraded")
        shown = await client.wait_for("provisional")
        assert shown["states"]["1"]["progress"]["current"] == 5
        # What is not of the log does not move the cursor.
        assert client.last_id == place
        # Who comes now is not refused for good, even if nobody can tell whether he may.
        async with Stream(site, "job:1") as late, Stream(site, "job:2") as unsure:
            await late.wait_for("provisional")
            await unsure.wait_for("degraded")
            assert not unsure.ops("provisional")
            server.start()
            for one in (client, late):
                await one.wait_for("restored", 1, 20)
            await late.synced()
            await unsure.synced()
            await publisher.publish("job:1", 3)
            await client.has("job:1", 6)
            await late.has("job:1", 6)
        assert client.views["job:1"].states["1"]["progress"]["current"] == 6
        assert client.connections == 1
        assert not client.holes
    publisher.close()


FILLING = "x" * 50_000


async def fill(publisher: Publisher, number: int) -> None:
    """Log lines of 50 kB: they have no state, so conflation may leave them out."""
    for start in range(number):
        publisher.rt.emitter.emit(one_draft("job:1", "log", key="1", data={"text": FILLING}))
        if start % 5 == 4:
            await publisher.flush()
    await publisher.flush()


async def test_a_slow_reader_is_evicted_holds_up_nobody_and_comes_back_by_its_id(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        bystander(site, publisher),
        Stream(site, "job:1") as other,
        Stream(site, "job:1") as slow,
    ):
        await other.synced()
        await slow.synced()
        slow.reading.clear()
        await fill(publisher, 200)
        await publisher.publish("job:1", 100)
        await other.has("job:1", 301)
        # What is kept for the one who stalls has a bound.
        kept = site.rt.web.hub._channels["job:1"].buffer_bytes
        assert kept <= Limits().evict_above_bytes + 5 * len(FILLING)
        slow.reading.set()
        bye = await slow.ended()
        assert (bye["op"], bye["code"]) == ("bye", 4413)

        # The log has the rest.
        await slow.cut()
        await slow.open()
        await slow.has("job:1", 301)
        assert slow.views["job:1"].states == other.views["job:1"].states
        assert not slow.holes
        assert not other.holes


async def test_who_takes_nothing_for_too_long_is_evicted(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with site_of(settings) as site, bystander(site, publisher):
        hub = site.rt.web.hub
        hub.limits = Limits(stall_seconds=1.0)
        here = set(hub.connections)
        async with Stream(site, "job:1") as client:
            await client.synced()
            [connection] = hub.connections - here
            client.reading.clear()
            while connection._sending_since is None:
                await fill(publisher, 5)
            await until(lambda: connection not in hub.connections, 10)
            assert connection.ended is not None
            assert connection.ended.code == 4413
            await until(lambda: hub.topics == 1)
            client.reading.set()
            await client.ended()


# How it ends.


@pytest.mark.every_backend(shares_storage=True)
async def test_a_server_that_is_told_to_stop_says_bye_and_ends_promptly(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with fleet_of(2, settings) as (one, other), Stream(one, "job:1") as client:
        await client.synced()
        began = time.monotonic()
        one.stop()
        bye = await client.ended()
        assert (bye["op"], bye["code"]) == ("bye", 1012)
        assert client.retries[-1] == round(bye["reconnect_seconds"] * 1000)
        assert client.ended_well
        await one.ended(5)
        # The graceful timeout of the server is 3 s: nothing had to be cancelled.
        assert time.monotonic() - began < 2.5
        await publisher.publish("job:1", 5)
        await client.cut()
        client.site = other
        await client.open()
        await client.has("job:1", 6)
        assert client.numbers("job:1") == [1, 2, 3, 4, 5]
        assert client.syncs[-1]["mode"] == "replay"


async def test_the_stream_ends_when_the_token_expires(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Stream(site, "job:1", headers=bearer(seconds=2)) as client:
        await client.synced()
        bye = await client.ended()
        assert (bye["op"], bye["code"]) == ("bye", 4402)
        assert client.ended_well
        await client.cut()
        await client.open()
        assert client.status == 401


@pytest.mark.every_row
async def test_the_stream_ends_when_no_topic_is_left(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 3)
    await publisher.publish("job:2", 3)
    async with Stream(site, "job:1", path=JOB) as only, Stream(site, "job:1", "job:2") as both:
        await only.synced()
        await both.synced()
        assert await site.rt.delete("1") is True
        bye = await only.ended()
        assert (bye["op"], bye["code"]) == ("bye", 4403)
        assert only.ops("gone") == [{"op": "gone", "topic": "job:1"}]
        assert only.last_id == ""
        await only.cut()
        await only.open()
        assert only.status == 404

        await both.wait_for("gone")
        await publisher.publish("job:2", 1)
        await both.has("job:2", 4)
        assert both.last_id == f",{both.views['job:2'].cursor}"
        await site.rt.delete("2")
        assert (await both.ended())["code"] == 4403
