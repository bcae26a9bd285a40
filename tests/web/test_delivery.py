"""Order, once, no silent gap (G1, G2, G3): what a client receives, whatever its connection does."""

from __future__ import annotations

import asyncio
import random

import pytest
from clients import CompatClient, NativeClient
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime, server_processes

from semantik_realtime.config import Settings

SEED = 20261123


@pytest.mark.every_row
async def test_a_watcher_sees_each_event_once_in_order(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        await publisher.publish("job:1", 300)
        await client.wait_for_offset("job:1", 301)
    assert client.numbers("job:1") == list(range(1, 301))
    assert client.resubscribed == 0


@pytest.mark.every_backend(shares_storage=True)
async def test_a_socket_cut_at_random_points_and_resumed_by_cursor_sees_each_event_once_in_order(
    settings: Settings, publisher: Publisher
) -> None:
    total, rng = 5000, random.Random(SEED)
    await publisher.publish("job:1", 1)
    async with server_processes(2, settings) as servers:
        client = NativeClient(servers[0], "job:1")
        await client.open()
        await client.wait_synced()

        def behind() -> int:
            return publisher.count["job:1"] - client.views["job:1"].offset

        async def publish() -> None:
            # Far enough ahead for a replay after each cut, and within what a replay may hold.
            while publisher.count["job:1"] < total:
                await until(lambda: behind() < 300)
                await publisher.publish("job:1", 20 if total - publisher.count["job:1"] > 20 else 1)

        publishing = asyncio.create_task(publish())
        cuts = 0
        while client.views["job:1"].offset < total:
            goal = min(total, client.views["job:1"].offset + rng.randrange(1, 400))
            await client.wait_for_offset("job:1", goal)
            await client.abort()
            cuts += 1
            client.web_server = rng.choice(servers)
            if rng.random() < 0.3:
                missed = min(rng.randrange(1, 300), total - client.views["job:1"].offset)
                await until(lambda missed=missed: behind() >= missed)
            await client.open()
        await publishing
        await client.close()
    assert not client.bad_batches
    assert client.numbers("job:1") == list(range(1, total))
    assert [event["offset"] for event in client.applied["job:1"]] == list(range(2, total + 1))
    assert {sync["mode"] for sync in client.syncs[1:]} == {"replay"}
    assert cuts > 10


@pytest.mark.every_row
async def test_a_late_joiner_gets_the_state_then_history_then_live(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 150)
    async with (
        NativeClient(web_server, "job:1", history=20) as native,
        CompatClient(web_server.compat_url("1")) as compat,
    ):
        await native.wait_synced()
        await compat.wait_for("step", 100)
        await publisher.publish("job:1", 3)
        await native.wait_for_offset("job:1", 153)
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
async def test_two_servers_deliver_the_same_events_of_one_job(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        server_processes(2, settings) as (one, other),
        NativeClient(one, "job:1") as left,
        NativeClient(other, "job:1") as right,
    ):
        await left.wait_synced()
        await right.wait_synced()
        await publisher.publish("job:1", 200)
        await publisher.end("job:1")
        await left.wait_for_offset("job:1", 202)
        await right.wait_for_offset("job:1", 202)
    assert left.applied == right.applied
    assert left.views["job:1"].cursor == right.views["job:1"].cursor
    assert left.views["job:1"].states == right.views["job:1"].states
    assert left.applied["job:1"][-1]["terminal"] is True


@pytest.mark.every_row(shares_storage=True)
async def test_clients_that_subscribe_while_events_flow_miss_none(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    clients: list[NativeClient] = []

    async def watch_briefly(web_server: InProcessServer) -> None:
        async with NativeClient(web_server, "job:1") as client:
            clients.append(client)
            await client.wait_synced()
            await client.wait_for_offset("job:1", client.syncs[0]["offset"] + 20)

    async with serve_realtime(settings.model_copy(update={"max_connections": 100})) as web_server:
        watching = [asyncio.create_task(watch_briefly(web_server)) for _ in range(40)]
        while not all(task.done() for task in watching):
            await publisher.publish("job:1", 5)
        await asyncio.gather(*watching)
    for client in clients:
        first = client.syncs[0]["offset"]
        assert client.numbers("job:1") == list(range(first, first + len(client.applied["job:1"])))


@pytest.mark.every_row
async def test_a_topic_followed_before_it_begins_is_delivered_from_its_first_event(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    async with NativeClient(web_server, "user:7") as client:
        await client.wait_synced()
        assert client.views["user:7"].cursor is None
        await publisher.publish("user:7", 10)
        await client.wait_for_offset("user:7", 10)
    assert client.numbers("user:7") == list(range(10))


@pytest.mark.every_row
async def test_subscribing_again_on_the_same_connection_resumes(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        publishing = asyncio.create_task(publisher.publish("job:1", 200))
        while client.views["job:1"].offset < 201:
            await client.subscribe("job:1")
            await asyncio.sleep(0)
            await client.wait_for("sync", len(client.syncs) + 1)
        await publishing
    assert client.numbers("job:1") == list(range(1, 201))


@pytest.mark.every_row
async def test_a_cursor_of_another_history_gets_a_snapshot_with_the_reason(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 10)
    # The other client keeps the recent events in the server's buffer.
    async with (
        NativeClient(web_server, "job:1") as other,
        NativeClient(web_server, "job:1") as client,
    ):
        await other.wait_synced()
        await client.wait_synced()
        epoch, _, chain = client.views["job:1"].cursor.split(".")
        await publisher.publish("job:1", 5)
        await client.wait_for_offset("job:1", 15)
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


async def test_an_unreadable_cursor_of_an_unknown_topic_gets_a_snapshot(
    web_server: InProcessServer,
) -> None:
    async with (
        NativeClient(web_server, "user:7") as other,
        NativeClient(web_server, "user:7") as client,
    ):
        await other.wait_synced()
        await client.wait_synced()
        await client.send({"op": "subscribe", "topics": {"user:7": "rubbish"}})
        answer = await client.wait_for("sync", 2)
    assert answer["mode"] == "snapshot"
    assert answer["cursor"] is None


@pytest.mark.every_row
async def test_a_client_that_was_away_too_long_gets_a_snapshot(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    client = NativeClient(web_server, "job:1")
    await client.open()
    await client.wait_synced()
    await client.abort()
    await publisher.publish("job:1", 1200, batch=200)
    await client.open()
    await client.wait_for_offset("job:1", 1201)
    await client.close()
    assert client.syncs[-1]["reason"] in ("trimmed", "too_far")
    assert client.views["job:1"].states["1"]["progress"]["current"] == 1201
