"""Metrics of resyncs and outages: each moves only when what it counts happens."""

from __future__ import annotations

import pytest
import redis
from clients import NativeClient
from configuration import make_settings
from metrics_page import (
    METRICS_SETTINGS,
    changes,
    scrape,
    wait_for_samples,
)
from publisher import Publisher
from web_servers import (
    InProcessServer,
    serve_realtime,
    without_delivery,
)

from semantik_realtime.core.event import Outcome
from semantik_realtime.testing.servers import RedisServer, Server

SETTINGS = METRICS_SETTINGS


async def test_a_gap_is_counted_as_a_resync(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        before = await scrape(web_server)
        async with without_delivery(web_server, "job:1"):
            await publisher.publish("job:1", 3)
        assert not changes(before, await scrape(web_server), "resyncs_total")
        await publisher.publish("job:1", 1)
        await client.wait_for_offset("job:1", 5)
        after = await scrape(web_server)
    assert changes(before, after, "resyncs_total") == {("resyncs_total", "gap"): 1}


async def test_a_lost_tail_is_counted_as_a_resync(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        before = await scrape(web_server)
        async with without_delivery(web_server, "job:1"):
            await publisher.publish("job:1", 3)
            await web_server.rt.web.hub.check_tops()
        await client.wait_for_offset("job:1", 4)
        after = await scrape(web_server)
    assert changes(before, after, "resyncs_total") == {("resyncs_total", "tail"): 1}


async def test_reading_ahead_of_the_live_events_is_counted_as_a_resync(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        before = await scrape(web_server)
        async with without_delivery(web_server, "job:1"):
            await publisher.publish("job:1", 3)
            async with NativeClient(web_server, "job:1") as late:
                await late.wait_synced()
        await client.wait_for_offset("job:1", 4)
        after = await scrape(web_server)
    assert changes(before, after, "resyncs_total") == {("resyncs_total", "ahead"): 1}


async def test_an_interrupted_subscription_is_counted_and_is_no_outage(server: RedisServer) -> None:
    settings = make_settings(server.url, **METRICS_SETTINGS)
    publisher = Publisher(settings)
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    async with (
        serve_realtime(settings) as web_server,
        NativeClient(web_server, "job:1", "job:2") as client,
    ):
        await client.wait_synced()
        before = await scrape(web_server)
        with redis.Redis.from_url(server.url) as admin:
            assert admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        interrupted = ("resyncs_total", "interrupted")
        after = await wait_for_samples(web_server, {interrupted: before[interrupted] + 2})
        await publisher.publish("job:1", 3)
        await client.wait_for_offset("job:1", 4)
        assert changes(before, after, "resyncs_total", "degraded_seconds_total") == {interrupted: 2}
        assert not client.ops("degraded")
    publisher.close()


async def test_an_outage_of_writes_alone_is_counted_as_an_outage(server: RedisServer) -> None:
    settings = make_settings(server.url, **METRICS_SETTINGS)
    publisher = Publisher(settings)
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    with redis.Redis.from_url(server.url) as admin:
        async with (
            serve_realtime(settings) as web_server,
            NativeClient(web_server, "job:1", "job:2") as client,
        ):
            await client.wait_synced()
            before = await scrape(web_server)
            # A full server refuses writes, and still answers reads and delivers pub/sub.
            admin.config_set("maxmemory", "1mb")
            assert (await web_server.rt.publish("job:1", "note")).outcome is Outcome.WAITING
            await client.wait_for("degraded")
            admin.config_set("maxmemory", "0")
            await client.wait_for("restored", seconds=30)
            after = await scrape(web_server)
            assert changes(before, after, "resyncs_total") == {("resyncs_total", "outage"): 2}
            assert after["degraded_seconds_total",] > before["degraded_seconds_total",]
    publisher.close()


async def test_the_length_of_an_outage_and_the_delayed_drafts_are_measured(
    server: Server,
) -> None:
    settings = make_settings(server.url, timeout_seconds=1.0, **METRICS_SETTINGS)
    publisher = Publisher(settings)
    async with serve_realtime(settings) as web_server:
        await publisher.publish("job:1", 1)
        async with NativeClient(web_server, "job:1") as client:
            await client.wait_synced()
            before = await scrape(web_server)
            assert before["degraded",] == 0
            server.stop()
            waiting = await web_server.rt.publish("job:1", "note")
            assert waiting.outcome is Outcome.WAITING
            page = await wait_for_samples(web_server, {("degraded",): 1.0})
            assert page["spool_drafts",] == before["spool_drafts",] + 1
            assert page["spool_bytes",] > before["spool_bytes",]
            assert page["emitter_failures_total",] > before["emitter_failures_total",]
            later = await scrape(web_server)
            assert later["degraded_seconds_total",] > page["degraded_seconds_total",] > 0

            server.start()
            await client.wait_for("restored", seconds=30)
            after = await scrape(web_server)
            assert after["degraded",] == 0
            assert after["degraded_seconds_total",] >= later["degraded_seconds_total",]
            again = await scrape(web_server)
            assert again["degraded_seconds_total",] == after["degraded_seconds_total",]
            # The counter and the degraded mode agree on the total.
            assert web_server.rt.web.outage.seconds == pytest.approx(
                after["degraded_seconds_total",]
            )
            assert after["spool_drafts",] == before["spool_drafts",]
            drafts = changes(before, after, "drafts_total")
            assert drafts["drafts_total", "appended"] >= 1
    publisher.close()
