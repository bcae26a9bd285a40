"""Metrics of connections, events and answers: each moves only when what it counts happens."""

from __future__ import annotations

import time
from typing import Any

from clients import CompatClient, NativeClient, SseClient, refusal
from configuration import token
from metrics_page import (
    METRICS_SETTINGS,
    changes,
    scrape,
    wait_for_samples,
)
from publisher import Publisher, one_draft
from waiting import is_blocked, until
from web_servers import (
    InProcessServer,
    serve_realtime,
)

from semantik_realtime.config import Settings
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.core.limits import MAX_REPLAY
from semantik_realtime.hookspecs import hookimpl

SETTINGS = METRICS_SETTINGS


async def test_connections_subscriptions_and_topics_are_counted_while_they_last(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    for topic in ("job:1", "job:2"):
        await publisher.publish(topic, 1)
    before = await scrape(web_server)
    async with (
        NativeClient(web_server, "job:1", "job:2") as native,
        NativeClient(web_server, "job:1") as other,
        CompatClient(web_server.compat_url("1")) as compat,
        SseClient(web_server, "job:1") as stream,
    ):
        await native.wait_synced()
        await other.wait_synced()
        await stream.wait_synced()
        await compat.wait_for("current_state")
        page = await scrape(web_server)
        assert page["connections", "native"] == 2
        assert page["connections", "compat"] == 1
        assert page["connections", "sse"] == 1
        assert page["subscriptions",] == 5
        assert page["topics",] == 2
        assert not changes(before, page, "connections_closed_total")
    idle = {
        ("connections", "native"): 0.0,
        ("connections", "compat"): 0.0,
        ("connections", "sse"): 0.0,
        ("subscriptions",): 0.0,
        ("topics",): 0.0,
    }
    page = await wait_for_samples(web_server, idle)
    assert changes(before, page, "connections_closed_total") == {
        ("connections_closed_total", "client"): 4
    }


async def test_each_event_is_counted_once_as_received_and_per_client_as_delivered(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    async with NativeClient(web_server, "job:1") as one, NativeClient(web_server, "job:1") as other:
        await one.wait_synced()
        await other.wait_synced()
        before = await scrape(web_server)
        await publisher.publish("job:1", 20, batch=7)
        await one.wait_for_offset("job:1", 30)
        await other.wait_for_offset("job:1", 30)
        # The server counts after writing, so the client may have the event first.
        after = await wait_for_samples(
            web_server, {("events_delivered_total",): before["events_delivered_total",] + 40}
        )
        assert changes(before, after, "events_received_total") == {("events_received_total",): 20}
        lag = changes(before, after, "delivery_lag_seconds_count", "delivery_lag_seconds_sum")
        # One observation for each batch and connection.
        assert 6 <= lag["delivery_lag_seconds_count",] <= 40
        assert 0 < lag["delivery_lag_seconds_sum",] < 20 * 40


async def test_the_lag_begins_at_the_time_of_the_event_and_is_never_negative(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        page = await scrape(web_server)
        # The time of a clock that is an hour ahead, then of an event 90 s late.
        for ahead_seconds, bucket, least in ((3600, "0.005", 0.0), (-90, "300.0", 90.0)):
            before = page
            moment = time.gmtime(time.time() + ahead_seconds)
            publisher.emit("job:1", time=time.strftime("%Y-%m-%dT%H:%M:%S.000Z", moment))
            await publisher.flush()
            page = await wait_for_samples(
                web_server,
                {("delivery_lag_seconds_count",): before["delivery_lag_seconds_count",] + 1},
            )
            buckets = changes(before, page, "delivery_lag_seconds_bucket")
            assert min(float(bound) for _, bound in buckets) == float(bucket)
            total = page["delivery_lag_seconds_sum",] - before["delivery_lag_seconds_sum",]
            assert least <= total < least + 60


async def test_an_event_with_an_unreadable_time_is_delivered_and_has_no_lag(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        before = await scrape(web_server)
        publisher.emit("job:1", time="yesterday")
        await client.wait_for_offset("job:1", 2)
        after = await wait_for_samples(
            web_server, {("events_delivered_total",): before["events_delivered_total",] + 1}
        )
        assert not changes(before, after, "delivery_lag_seconds_count")
        assert client.closed is None


async def test_answers_to_subscriptions_are_counted_by_reason(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 5)
    before = await scrape(web_server)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        cursor = client.views["job:1"].cursor
        await client.subscribe("job:1")
        await client.wait_for("sync", 2)
        epoch = cursor.partition(".")[0]
        for wrong in ("other.5.00000000", f"{epoch}.5.00000000", f"{epoch}.99.00000000"):
            count = len(client.syncs)
            await client.send({"op": "subscribe", "topics": {"job:1": wrong}})
            await client.wait_for("sync", count + 1)
        # After the deletion there is no log and no host's record.
        await web_server.rt.delete("1")
        await client.wait_for("gone")
    after = await scrape(web_server)
    assert changes(before, after, "syncs_total") == {
        ("syncs_total", reason): 1 for reason in ("new", "replay", "epoch", "diverged", "ahead")
    }
    assert {frame["reason"] for frame in client.syncs if frame["mode"] == "snapshot"} == {
        "new",
        "epoch",
        "diverged",
        "ahead",
    }


async def test_cursors_that_are_too_old_for_a_replay_are_counted_by_reason(
    settings: Settings, publisher: Publisher
) -> None:
    for reason, topic, news in (("too_far", "job:1", MAX_REPLAY + 1), ("trimmed", "job:2", 1200)):
        # Both logs are longer than a replay may be; the second has lost its beginning.
        kept = settings.model_copy(update={"retention_events": news if reason == "too_far" else 50})
        writer = Publisher(kept)
        await writer.publish(topic, 1)
        async with serve_realtime(settings) as web_server:
            async with NativeClient(web_server, topic) as client:
                await client.wait_synced()
                cursor = client.views[topic].cursor
            before = await wait_for_samples(web_server, {("topics",): 0.0})
            await writer.publish(topic, news, batch=200)
            async with NativeClient(web_server) as late:
                await late.wait_for("welcome")
                await late.send({"op": "subscribe", "topics": {topic: cursor}})
                sync = await late.wait_for("sync")
            after = await scrape(web_server)
        writer.close()
        assert (sync["mode"], sync["reason"]) == ("snapshot", reason)
        assert changes(before, after, "syncs_total") == {("syncs_total", reason): 1}


class Archive:
    """A plugin with the host's record, which every user may see."""

    @hookimpl
    def authorize(self) -> bool:
        return True

    @hookimpl
    def recall(self, topic: str) -> dict[str, Any]:
        return {topic.partition(":")[2]: {"status": "completed"}}


async def test_answers_from_the_hosts_record_are_counted(settings: Settings) -> None:
    async with serve_realtime(settings, plugins=[Archive()]) as web_server:
        before = await scrape(web_server)
        async with NativeClient(web_server, "job:1", "job:2") as client:
            await client.wait_synced()
        after = await scrape(web_server)
    assert {sync["reason"] for sync in client.syncs} == {"recalled"}
    assert changes(before, after, "syncs_total") == {("syncs_total", "recalled"): 2}


async def test_refused_connections_are_counted_by_reason(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    few = settings.model_copy(update={"max_connections": 1})
    async with serve_realtime(few) as web_server, NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        before = await scrape(web_server)
        await refusal(web_server.native_url, origin="https://elsewhere.example")
        await refusal(web_server.compat_url("1"), origin="https://elsewhere.example")
        await refusal(web_server.native_url + "?token=rubbish")
        await refusal(web_server.native_url + f"?token={token(seconds=-1)}")
        await refusal(web_server.native_url + f"?token={token()}")
        await refusal(web_server.compat_url("1") + "?token=rubbish")
        await refusal(web_server.compat_url("1") + f"?token={token('8')}")
        after = await scrape(web_server)
        assert changes(before, after, "connections_refused_total", "connections_closed_total") == {
            ("connections_refused_total", "origin"): 2,
            ("connections_refused_total", "unauthenticated"): 1,
            ("connections_refused_total", "expired"): 1,
            ("connections_refused_total", "too_many_connections"): 1,
            ("connections_refused_total", "policy"): 2,
        }
        assert client.closed is None


async def test_closed_connections_are_counted_by_reason(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    before = await scrape(web_server)
    async with NativeClient(web_server, "job:1", query=f"?token={token(seconds=2)}") as expiring:
        await until(lambda: expiring.closed)
    async with NativeClient(web_server, "job:1") as garbling:
        await garbling.wait_synced()
        for _ in range(10):
            await garbling.send("{")
        await until(lambda: garbling.closed)
    async with NativeClient(web_server, "job:1") as draining:
        await draining.wait_synced()
        [connection] = web_server.rt.web.hub.connections
        connection.drain()
        await until(lambda: draining.closed)
    after = await wait_for_samples(web_server, {("connections", "native"): 0.0})
    assert (expiring.closed, garbling.closed, draining.closed) == (4402, 4400, 1012)
    assert changes(before, after, "connections_closed_total", "connections_refused_total") == {
        ("connections_closed_total", reason): 1 for reason in ("expired", "bad_frame", "drain")
    }


async def test_the_outbox_of_a_slow_client_is_measured_until_its_eviction(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    hub = web_server.rt.web.hub
    hub.limits = Limits(evict_above_bytes=256 * 1024)
    await publisher.publish("job:1", 1)
    slow = NativeClient(web_server, "job:1", compression=None)
    await slow.open()
    await slow.wait_synced()
    assert slow.socket is not None
    before = await wait_for_samples(web_server, {("outbox_bytes",): 0.0})
    slow.socket.transport.pause_reading()
    [connection] = hub.connections

    async def publish(text: str) -> None:
        publisher.rt.emitter.emit(one_draft("job:1", "log", key="1", data={"text": text}))
        await publisher.flush()

    async def fill(text: str) -> None:
        # Until the server has it: what is still on its way would be too much, or too late.
        offset = hub._channels["job:1"].cursor.offset
        await publish(text)
        await until(lambda: hub._channels["job:1"].cursor.offset > offset)

    # Until the kernel's buffers are full and the send blocks.
    while not await is_blocked(connection):
        await fill("x" * 50_000)
    for _ in range(3):
        await fill("y" * 50_000)
    page = await scrape(web_server)
    # The frames that are being sent, and the events behind them.
    assert 150_000 < page["outbox_bytes",] < 1_000_000
    assert page["events_delivered_total",] > before["events_delivered_total",]
    assert not changes(before, page, "connections_closed_total")

    offset = hub._channels["job:1"].cursor.offset
    for _ in range(8):
        await publish("z" * 50_000)
    # Before the client reads again: otherwise it may take all in time.
    await until(lambda: hub._channels["job:1"].cursor.offset >= offset + 8)
    slow.socket.transport.resume_reading()
    await until(lambda: slow.closed)
    after = await wait_for_samples(
        web_server, {("outbox_bytes",): 0.0, ("connections", "native"): 0.0}
    )
    assert changes(before, after, "connections_closed_total") == {
        ("connections_closed_total", "evicted"): 1
    }
