"""G1 order, G2 once, G3 no silent gap: what a watcher gets, whatever happens to its connection."""

from __future__ import annotations

import asyncio
import random

import pytest
from fleet import Compat, Here, Native, Publisher, fleet_of, site_of, until

from semantik_realtime.config import Settings

SEED = 20261123


@pytest.mark.every_row
async def test_a_watcher_sees_each_event_once_in_order(site: Here, publisher: Publisher) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        await publisher.publish("job:1", 300)
        await client.has("job:1", 301)
    assert client.numbers("job:1") == list(range(1, 301))
    assert client.resubscribed == 0


@pytest.mark.every_backend(shares_storage=True)
async def test_a_socket_cut_at_random_points_and_resumed_by_cursor_sees_each_event_once_in_order(
    settings: Settings, publisher: Publisher
) -> None:
    total, rng = 5000, random.Random(SEED)
    await publisher.publish("job:1", 1)
    async with fleet_of(2, settings) as servers:
        client = Native(servers[0], "job:1")
        await client.open()
        await client.synced()

        def behind() -> int:
            return publisher.count["job:1"] - client.views["job:1"].offset

        async def publish() -> None:
            # So far ahead that every return finds a lot, never so far that it is not replayed.
            while publisher.count["job:1"] < total:
                await until(lambda: behind() < 300)
                await publisher.publish("job:1", 20 if total - publisher.count["job:1"] > 20 else 1)

        publishing = asyncio.create_task(publish())
        cuts = 0
        while client.views["job:1"].offset < total:
            goal = min(total, client.views["job:1"].offset + rng.randrange(1, 400))
            await client.has("job:1", goal)
            await client.cut()
            cuts += 1
            client.site = rng.choice(servers)
            if rng.random() < 0.3:
                missed = min(rng.randrange(1, 300), total - client.views["job:1"].offset)
                await until(lambda missed=missed: behind() >= missed)
            await client.open()
        await publishing
        await client.close()
    assert not client.holes
    assert client.numbers("job:1") == list(range(1, total))
    assert [event["offset"] for event in client.seen["job:1"]] == list(range(2, total + 1))
    assert {sync["mode"] for sync in client.syncs[1:]} == {"replay"}
    assert cuts > 10


@pytest.mark.every_row
async def test_a_late_joiner_gets_the_state_then_history_then_live(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 150)
    async with (
        Native(site, "job:1", history=20) as native,
        Compat(site.compat("1")) as compat,
    ):
        await native.synced()
        await compat.wait_for("step", 100)
        await publisher.publish("job:1", 3)
        await native.has("job:1", 153)
        await compat.wait_for("step", 103)

    [sync] = native.syncs
    assert sync["reason"] == "new"
    assert sync["states"]["1"]["progress"]["current"] == 150
    assert [event["data"]["i"] for event in sync["events"]] == list(range(130, 150))
    assert native.numbers("job:1") == [150, 151, 152]

    first, *rest = compat.messages
    assert first["type"] == "current_state"
    assert first["data"]["current"] == 150
    assert [message["data"]["i"] for message in rest] == list(range(50, 153))
    assert [bool(message.get("replayed")) for message in rest] == [True] * 100 + [False] * 3


@pytest.mark.every_backend(shares_storage=True)
async def test_two_servers_serve_watchers_of_one_job_alike(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        fleet_of(2, settings) as (one, other),
        Native(one, "job:1") as left,
        Native(other, "job:1") as right,
    ):
        await left.synced()
        await right.synced()
        await publisher.publish("job:1", 200)
        await publisher.end("job:1")
        await left.has("job:1", 202)
        await right.has("job:1", 202)
    assert left.seen == right.seen
    assert left.views["job:1"].cursor == right.views["job:1"].cursor
    assert left.views["job:1"].states == right.views["job:1"].states
    assert left.seen["job:1"][-1]["terminal"] is True


@pytest.mark.every_row(shares_storage=True)
async def test_subscribers_that_come_while_events_flow_miss_none(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    clients: list[Native] = []

    async def watch_briefly(site: Here) -> None:
        async with Native(site, "job:1") as client:
            clients.append(client)
            await client.synced()
            await client.has("job:1", client.syncs[0]["offset"] + 20)

    async with site_of(settings.model_copy(update={"max_connections": 100})) as site:
        watching = [asyncio.create_task(watch_briefly(site)) for _ in range(40)]
        while not all(task.done() for task in watching):
            await publisher.publish("job:1", 5)
        await asyncio.gather(*watching)
    for client in clients:
        first = client.syncs[0]["offset"]
        assert client.numbers("job:1") == list(range(first, first + len(client.seen["job:1"])))


@pytest.mark.every_row
async def test_a_topic_watched_before_it_begins_is_seen_from_its_first_event(
    site: Here, publisher: Publisher
) -> None:
    async with Native(site, "user:7") as client:
        await client.synced()
        assert client.views["user:7"].cursor is None
        await publisher.publish("user:7", 10)
        await client.has("user:7", 10)
    assert client.numbers("user:7") == list(range(10))


@pytest.mark.every_row
async def test_subscribing_again_on_the_same_connection_resumes(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with Native(site, "job:1") as client:
        await client.synced()
        publishing = asyncio.create_task(publisher.publish("job:1", 200))
        while client.views["job:1"].offset < 201:
            await client.subscribe("job:1")
            await asyncio.sleep(0)
            await client.wait_for("sync", len(client.syncs) + 1)
        await publishing
    assert client.numbers("job:1") == list(range(1, 201))


@pytest.mark.every_row
async def test_a_cursor_of_another_history_gets_a_snapshot_with_the_reason(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    # Somebody else keeps the recent events in the server's memory.
    async with Native(site, "job:1") as other, Native(site, "job:1") as client:
        await other.synced()
        await client.synced()
        epoch, _, chain = client.views["job:1"].cursor.split(".")
        await publisher.publish("job:1", 5)
        await client.has("job:1", 15)
        wrong = {
            "epoch": f"other.10.{chain}",
            "ahead": f"{epoch}.16.{chain}",
            "diverged": f"{epoch}.12.00000000",
        }
        for number, (reason, cursor) in enumerate([*wrong.items(), ("epoch", "rubbish")], start=2):
            await client.send({"op": "subscribe", "topics": {"job:1": cursor}})
            answer = await client.wait_for("sync", number)
            assert (answer["mode"], answer["reason"]) == ("snapshot", reason)
            assert answer["states"]["1"]["progress"]["current"] == 15


async def test_a_rubbish_cursor_of_an_unknown_topic_gets_a_snapshot(site: Here) -> None:
    async with Native(site, "user:7") as other, Native(site, "user:7") as client:
        await other.synced()
        await client.synced()
        await client.send({"op": "subscribe", "topics": {"user:7": "rubbish"}})
        answer = await client.wait_for("sync", 2)
    assert answer["mode"] == "snapshot"
    assert answer["cursor"] is None


@pytest.mark.every_row
async def test_a_client_that_was_away_too_long_gets_a_snapshot(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    client = Native(site, "job:1")
    await client.open()
    await client.synced()
    await client.cut()
    await publisher.publish("job:1", 1200, batch=200)
    await client.open()
    await client.has("job:1", 1201)
    await client.close()
    assert client.syncs[-1]["reason"] in ("trimmed", "too_far")
    assert client.views["job:1"].states["1"]["progress"]["current"] == 1201
