"""What Prometheus is told: every number moves when what it counts happens, and only then."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fleet import (
    Compat,
    Here,
    Native,
    Publisher,
    Site,
    Stream,
    deaf,
    fleet_of,
    make_settings,
    one_draft,
    refused,
    site_of,
    token,
    until,
)
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.core.event import Outcome
from semantik_realtime.core.limits import MAX_REPLAY
from semantik_realtime.errors import ConfigError
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.testing.servers import RedisServer, Server

SCRAPER = {"Authorization": "Bearer of the scraper"}
Numbers = dict[tuple[str, ...], float]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nobody looks for lost tails here, unless told to."""
    return opened(settings)


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Here]:
    async with site_of(settings) as here:
        yield here


def opened(settings: Settings) -> Settings:
    """The same settings, with metrics for the scraper."""
    metrics_token = SecretStr(SCRAPER["Authorization"].removeprefix("Bearer "))
    return settings.model_copy(update={"metrics_token": metrics_token, "tops_seconds": 3600.0})


async def ask(site: Site, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=site.http, timeout=20) as http:
        return await http.get("/realtime/metrics", headers=headers)


async def scrape(site: Site) -> Numbers:
    """Each sample by its name, without ours before it, and the values of its labels."""
    answer = await ask(site, **SCRAPER)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name.removeprefix("semantik_realtime_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


async def becomes(site: Site, expected: Numbers, seconds: float = 15.0) -> Numbers:
    """The page, once it has these numbers."""
    deadline = time.monotonic() + seconds
    while True:
        page = await scrape(site)
        if expected.items() <= page.items():
            return page
        if time.monotonic() > deadline:
            found = {name: page.get(name) for name in expected}
            raise AssertionError(f"expected {expected}, found {found}")


def moved(before: Numbers, after: Numbers, *names: str) -> Numbers:
    """What has changed of the metrics with these names."""
    return {
        sample: value - before[sample]
        for sample, value in after.items()
        if sample[0] in names and value != before[sample]
    }


async def test_connections_subscriptions_and_topics_are_told_while_they_last(
    site: Here, publisher: Publisher
) -> None:
    for topic in ("job:1", "job:2"):
        await publisher.publish(topic, 1)
    before = await scrape(site)
    async with (
        Native(site, "job:1", "job:2") as native,
        Native(site, "job:1") as other,
        Compat(site.compat("1")) as compat,
        Stream(site, "job:1") as stream,
    ):
        await native.synced()
        await other.synced()
        await stream.synced()
        await compat.wait_for("current_state")
        page = await scrape(site)
        assert page["connections", "native"] == 2
        assert page["connections", "compat"] == 1
        assert page["connections", "sse"] == 1
        assert page["subscriptions",] == 5
        assert page["topics",] == 2
        assert not moved(before, page, "connections_closed_total")
    nobody = {
        ("connections", "native"): 0.0,
        ("connections", "compat"): 0.0,
        ("connections", "sse"): 0.0,
        ("subscriptions",): 0.0,
        ("topics",): 0.0,
    }
    page = await becomes(site, nobody)
    assert moved(before, page, "connections_closed_total") == {
        ("connections_closed_total", "client"): 4
    }


async def test_each_event_is_received_once_and_delivered_to_each_who_watches(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    async with Native(site, "job:1") as one, Native(site, "job:1") as other:
        await one.synced()
        await other.synced()
        before = await scrape(site)
        await publisher.publish("job:1", 20, batch=7)
        await one.has("job:1", 30)
        await other.has("job:1", 30)
        # Counted is what was written, a moment after it has arrived.
        after = await becomes(
            site, {("events_delivered_total",): before["events_delivered_total",] + 40}
        )
        assert moved(before, after, "events_received_total") == {("events_received_total",): 20}
        lag = moved(before, after, "delivery_lag_seconds_count", "delivery_lag_seconds_sum")
        # Of each batch once for each connection.
        assert 6 <= lag["delivery_lag_seconds_count",] <= 40
        assert 0 < lag["delivery_lag_seconds_sum",] < 20 * 40


async def test_the_lag_begins_at_the_time_of_the_event_and_is_never_negative(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        page = await scrape(site)
        # Of a clock that is an hour ahead, then of an event that took a minute and a half.
        for ahead_seconds, bucket, least in ((3600, "0.005", 0.0), (-90, "300.0", 90.0)):
            before = page
            moment = time.gmtime(time.time() + ahead_seconds)
            publisher.emit("job:1", time=time.strftime("%Y-%m-%dT%H:%M:%S.000Z", moment))
            await publisher.flush()
            page = await becomes(
                site, {("delivery_lag_seconds_count",): before["delivery_lag_seconds_count",] + 1}
            )
            buckets = moved(before, page, "delivery_lag_seconds_bucket")
            assert min(float(bound) for _, bound in buckets) == float(bucket)
            total = page["delivery_lag_seconds_sum",] - before["delivery_lag_seconds_sum",]
            assert least <= total < least + 60


async def test_an_event_with_an_unreadable_time_is_delivered_and_has_no_lag(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        before = await scrape(site)
        publisher.emit("job:1", time="yesterday")
        await client.has("job:1", 2)
        after = await becomes(
            site, {("events_delivered_total",): before["events_delivered_total",] + 1}
        )
        assert not moved(before, after, "delivery_lag_seconds_count")
        assert client.closed is None


async def test_answers_to_subscriptions_are_told_by_reason(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 5)
    before = await scrape(site)
    async with Native(site, "job:1") as client:
        await client.synced()
        cursor = client.views["job:1"].cursor
        await client.subscribe("job:1")
        await client.wait_for("sync", 2)
        epoch = cursor.partition(".")[0]
        for wrong in ("other.5.00000000", f"{epoch}.5.00000000", f"{epoch}.99.00000000"):
            count = len(client.syncs)
            await client.send({"op": "subscribe", "topics": {"job:1": wrong}})
            await client.wait_for("sync", count + 1)
        # The host knows nothing of it either.
        await site.rt.delete("1")
        await client.wait_for("gone")
    after = await scrape(site)
    assert moved(before, after, "syncs_total") == {
        ("syncs_total", reason): 1 for reason in ("new", "replay", "epoch", "diverged", "ahead")
    }
    assert {frame["reason"] for frame in client.syncs if frame["mode"] == "snapshot"} == {
        "new",
        "epoch",
        "diverged",
        "ahead",
    }


async def test_cursors_that_are_too_old_for_a_replay_are_told_by_reason(
    settings: Settings, publisher: Publisher
) -> None:
    for reason, topic, news in (("too_far", "job:1", MAX_REPLAY + 1), ("trimmed", "job:2", 1200)):
        # Both logs are longer than a replay may be; of the other the beginning is not kept.
        kept = settings.model_copy(update={"retention_events": news if reason == "too_far" else 50})
        writer = Publisher(kept)
        await writer.publish(topic, 1)
        async with site_of(settings) as site:
            async with Native(site, topic) as client:
                await client.synced()
                cursor = client.views[topic].cursor
            before = await becomes(site, {("topics",): 0.0})
            await writer.publish(topic, news, batch=200)
            async with Native(site) as late:
                await late.wait_for("welcome")
                await late.send({"op": "subscribe", "topics": {topic: cursor}})
                sync = await late.wait_for("sync")
            after = await scrape(site)
        writer.close()
        assert (sync["mode"], sync["reason"]) == ("snapshot", reason)
        assert moved(before, after, "syncs_total") == {("syncs_total", reason): 1}


class Archive:
    """A host that knows its old jobs, and lets everyone see them."""

    @hookimpl
    def authorize(self) -> bool:
        return True

    @hookimpl
    def recall(self, topic: str) -> dict[str, Any]:
        return {topic.partition(":")[2]: {"status": "completed"}}


async def test_what_the_hosts_record_answers_is_told(settings: Settings) -> None:
    async with site_of(settings, plugins=[Archive()]) as site:
        before = await scrape(site)
        async with Native(site, "job:1", "job:2") as client:
            await client.synced()
        after = await scrape(site)
    assert {sync["reason"] for sync in client.syncs} == {"recalled"}
    assert moved(before, after, "syncs_total") == {("syncs_total", "recalled"): 2}


async def test_a_hole_in_the_feed_is_told(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        before = await scrape(site)
        async with deaf(site, "job:1"):
            await publisher.publish("job:1", 3)
        assert not moved(before, await scrape(site), "resyncs_total")
        await publisher.publish("job:1", 1)
        await client.has("job:1", 5)
        after = await scrape(site)
    assert moved(before, after, "resyncs_total") == {("resyncs_total", "gap"): 1}


async def test_a_tail_that_the_feed_lost_is_told(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        before = await scrape(site)
        async with deaf(site, "job:1"):
            await publisher.publish("job:1", 3)
            await site.rt.web.hub.check_tops()
        await client.has("job:1", 4)
        after = await scrape(site)
    assert moved(before, after, "resyncs_total") == {("resyncs_total", "tail"): 1}


async def test_reading_ahead_of_the_feed_is_told(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        before = await scrape(site)
        async with deaf(site, "job:1"):
            await publisher.publish("job:1", 3)
            async with Native(site, "job:1") as late:
                await late.synced()
        await client.has("job:1", 4)
        after = await scrape(site)
    assert moved(before, after, "resyncs_total") == {("resyncs_total", "ahead"): 1}


async def test_a_feed_that_was_cut_is_told_and_that_is_no_outage(server: RedisServer) -> None:
    settings = opened(make_settings(server.url))
    publisher = Publisher(settings)
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    async with site_of(settings) as site, Native(site, "job:1", "job:2") as client:
        await client.synced()
        before = await scrape(site)
        with redis.Redis.from_url(server.url) as admin:
            assert admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        interrupted = ("resyncs_total", "interrupted")
        after = await becomes(site, {interrupted: before[interrupted] + 2})
        await publisher.publish("job:1", 3)
        await client.has("job:1", 4)
        assert moved(before, after, "resyncs_total", "degraded_seconds_total") == {interrupted: 2}
        assert not client.ops("degraded")
    publisher.close()


async def test_an_outage_that_the_feed_survives_is_told_as_such(server: RedisServer) -> None:
    settings = opened(make_settings(server.url))
    publisher = Publisher(settings)
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    with redis.Redis.from_url(server.url) as admin:
        async with site_of(settings) as site, Native(site, "job:1", "job:2") as client:
            await client.synced()
            before = await scrape(site)
            # Full: it takes no write, and goes on to read and to publish.
            admin.config_set("maxmemory", "1mb")
            assert (await site.rt.publish("job:1", "note")).outcome is Outcome.WAITING
            await client.wait_for("degraded")
            admin.config_set("maxmemory", "0")
            await client.wait_for("restored", seconds=30)
            after = await scrape(site)
            assert moved(before, after, "resyncs_total") == {("resyncs_total", "outage"): 2}
            assert after["degraded_seconds_total",] > before["degraded_seconds_total",]
    publisher.close()


async def test_whoever_is_not_let_in_is_told_by_reason(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    few = settings.model_copy(update={"max_connections": 1})
    async with site_of(few) as site, Native(site, "job:1") as client:
        await client.synced()
        before = await scrape(site)
        await refused(site.native, origin="https://elsewhere.example")
        await refused(site.compat("1"), origin="https://elsewhere.example")
        await refused(site.native + "?token=rubbish")
        await refused(site.native + f"?token={token(seconds=-1)}")
        await refused(site.native + f"?token={token()}")
        await refused(site.compat("1") + "?token=rubbish")
        await refused(site.compat("1") + f"?token={token('8')}")
        after = await scrape(site)
        assert moved(before, after, "connections_refused_total", "connections_closed_total") == {
            ("connections_refused_total", "origin"): 2,
            ("connections_refused_total", "unauthenticated"): 1,
            ("connections_refused_total", "expired"): 1,
            ("connections_refused_total", "too_many_connections"): 1,
            ("connections_refused_total", "policy"): 2,
        }
        assert client.closed is None


async def test_whoever_is_sent_away_is_told_by_reason(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    before = await scrape(site)
    async with Native(site, "job:1", query=f"?token={token(seconds=2)}") as expiring:
        await until(lambda: expiring.closed)
    async with Native(site, "job:1") as babbling:
        await babbling.synced()
        for _ in range(10):
            await babbling.send("{")
        await until(lambda: babbling.closed)
    async with Native(site, "job:1") as draining:
        await draining.synced()
        [connection] = site.rt.web.hub.connections
        connection.drain()
        await until(lambda: draining.closed)
    after = await becomes(site, {("connections", "native"): 0.0})
    assert (expiring.closed, babbling.closed, draining.closed) == (4402, 4400, 1012)
    assert moved(before, after, "connections_closed_total", "connections_refused_total") == {
        ("connections_closed_total", reason): 1 for reason in ("expired", "bad_frame", "drain")
    }


async def test_what_waits_for_a_slow_reader_is_told_until_it_is_evicted(
    site: Here, publisher: Publisher
) -> None:
    hub = site.rt.web.hub
    hub.limits = Limits(evict_above_bytes=256 * 1024)
    await publisher.publish("job:1", 1)
    slow = Native(site, "job:1", compression=None)
    await slow.open()
    await slow.synced()
    assert slow.socket is not None
    before = await becomes(site, {("outbox_bytes",): 0.0})
    slow.socket.transport.pause_reading()
    [connection] = hub.connections

    async def fill(text: str) -> None:
        publisher.rt.emitter.emit(one_draft("job:1", "log", key="1", data={"text": text}))
        await publisher.flush()

    # Until the kernel takes no more.
    while connection._sending_since is None:
        await fill("x" * 50_000)
    offset = hub._channels["job:1"].cursor.offset
    for _ in range(3):
        await fill("y" * 50_000)
    await until(lambda: hub._channels["job:1"].cursor.offset >= offset + 3)
    page = await scrape(site)
    # What it stalls on, and what is behind that.
    assert 150_000 < page["outbox_bytes",] < 1_000_000
    assert page["events_delivered_total",] > before["events_delivered_total",]
    assert not moved(before, page, "connections_closed_total")

    for _ in range(8):
        await fill("z" * 50_000)
    slow.socket.transport.resume_reading()
    await until(lambda: slow.closed)
    after = await becomes(site, {("outbox_bytes",): 0.0, ("connections", "native"): 0.0})
    assert moved(before, after, "connections_closed_total") == {
        ("connections_closed_total", "evicted"): 1
    }


async def test_an_outage_is_told_with_its_length_and_what_waits_for_its_end(
    server: Server,
) -> None:
    settings = opened(make_settings(server.url, timeout_seconds=1.0))
    publisher = Publisher(settings)
    async with site_of(settings) as site:
        await publisher.publish("job:1", 1)
        async with Native(site, "job:1") as client:
            await client.synced()
            before = await scrape(site)
            assert before["degraded",] == 0
            server.stop()
            waiting = await site.rt.publish("job:1", "note")
            assert waiting.outcome is Outcome.WAITING
            page = await becomes(site, {("degraded",): 1.0})
            assert page["spool_drafts",] == before["spool_drafts",] + 1
            assert page["spool_bytes",] > before["spool_bytes",]
            assert page["emitter_failures_total",] > before["emitter_failures_total",]
            later = await scrape(site)
            assert later["degraded_seconds_total",] > page["degraded_seconds_total",] > 0

            server.start()
            await client.wait_for("restored", seconds=30)
            after = await scrape(site)
            assert after["degraded",] == 0
            assert after["degraded_seconds_total",] >= later["degraded_seconds_total",]
            again = await scrape(site)
            assert again["degraded_seconds_total",] == after["degraded_seconds_total",]
            # The next outage is added to it.
            assert site.rt.web.outage.seconds == pytest.approx(after["degraded_seconds_total",])
            assert after["spool_drafts",] == before["spool_drafts",]
            drafts = moved(before, after, "drafts_total")
            assert drafts["drafts_total", "appended"] >= 1
    publisher.close()


async def test_metrics_are_for_whoever_bears_their_token_and_nobody_else(
    site: Here, settings: Settings
) -> None:
    answer = await ask(site, **SCRAPER)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["cache-control"] == "no-store"
    open_metrics = await ask(site, **SCRAPER, Accept="application/openmetrics-text")
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")
    for credential in ("", "Bearer", "Bearer rubbish", f"Bearer {token()}", "Bearer ümlaut"):
        headers = {"Authorization": credential.encode()} if credential else {}
        answer = await ask(site, **headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "semantik_realtime_" not in answer.text


async def test_without_a_token_nobody_gets_metrics(settings: Settings) -> None:
    closed = settings.model_copy(update={"metrics_token": None})
    async with site_of(closed) as site:
        for headers in ({}, SCRAPER, {"Authorization": f"Bearer {token()}"}):
            answer = await ask(site, **headers)
            assert answer.status_code == 404
            assert answer.json() == {
                "code": "metrics_off",
                "message": "SEMANTIK_REALTIME_METRICS_TOKEN is not set",
            }


async def test_where_everyone_may_watch_everything_everyone_gets_metrics(
    settings: Settings,
) -> None:
    development = {"metrics_token": None, "disable_auth": True, "environment": "development"}
    async with site_of(settings.model_copy(update=development)) as site:
        answer = await ask(site)
    assert answer.status_code == 200
    assert "semantik_realtime_connections" in answer.text


async def test_the_hosts_registry_has_both_its_metrics_and_ours(settings: Settings) -> None:
    registry = CollectorRegistry(auto_describe=True)
    Counter("uploads", "Uploads to the host.", registry=registry).inc(3)
    async with site_of(settings, registry=registry) as site:
        page = await scrape(site)
        assert page["uploads_total",] == 3
        assert page["connections", "native"] == 0
        assert b"semantik_realtime_drafts_total" in generate_latest(registry)
    with pytest.raises(ConfigError, match="Duplicated"):
        _ = Realtime(settings, registry=registry).web


async def test_without_prometheus_client_the_route_says_what_to_install(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with fleet_of(1, settings, app="bare:app") as [server]:
        answer = await ask(server, **SCRAPER)
        assert answer.status_code == 501
        assert answer.json() == {
            "code": "no_metrics",
            "message": 'there are no metrics: pip install "semantik-realtime[metrics]"',
        }
        assert (await ask(server)).status_code == 401
        async with Native(server, "job:1") as client:
            await client.synced()
            await publisher.publish("job:1", 3)
            await client.has("job:1", 4)


async def test_processes_that_share_a_directory_are_told_as_one(
    settings: Settings, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        fleet_of(2, settings, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as (one, other),
        Native(one, "job:1") as here,
        Native(other, "job:1") as there,
        Compat(other.compat("1")) as compat,
    ):
        await here.synced()
        await there.synced()
        await compat.wait_for("current_state")
        await publisher.publish("job:1", 10, batch=10)
        await here.has("job:1", 11)
        await there.has("job:1", 11)
        told = {
            ("connections", "native"): 2.0,
            ("connections", "compat"): 1.0,
            ("subscriptions",): 3.0,
            ("events_received_total",): 20.0,
            ("events_delivered_total",): 30.0,
            ("degraded",): 0.0,
        }
        for server in (one, other):
            page = await becomes(server, told)
            assert page["delivery_lag_seconds_count",] >= 3
            assert (
                page["delivery_lag_seconds_bucket", "+Inf"] == page["delivery_lag_seconds_count",]
            )

        # Who is killed cannot say that it is gone. What it has counted stays counted.
        other.remove()
        left = {**told, ("connections", "native"): 1.0, ("connections", "compat"): 0.0}
        left["subscriptions",] = 1.0
        page = await becomes(one, left)
        one.stop()
        await one.ended()
        async with fleet_of(1, settings, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as [third]:
            end = {
                ("connections", "native"): 0.0,
                ("connections_closed_total", "drain"): 1.0,
                ("events_received_total",): 20.0,
            }
            await becomes(third, end)


async def test_a_directory_that_cannot_be_written_costs_nothing_but_the_metrics(
    settings: Settings, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.publish("job:1", 1)
    missing = str(tmp_path / "missing")
    async with fleet_of(1, settings, PROMETHEUS_MULTIPROC_DIR=missing) as [server]:
        answer = await ask(server, **SCRAPER)
        assert answer.status_code == 501
        assert missing in answer.json()["message"]
        async with Native(server, "job:1") as client:
            await client.synced()
