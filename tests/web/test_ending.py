"""Draining, deletion and expiry: how things end for those who watch."""

from __future__ import annotations

import asyncio
import json
import time
from urllib.parse import urlsplit

import pytest
from fleet import Compat, Here, Native, Publisher, Way, fleet_of, refused, site_of, token, until

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.hookspecs import hookimpl


@pytest.mark.every_backend(shares_storage=True)
async def test_a_server_that_is_told_to_stop_sends_everyone_away_and_ends_promptly(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        fleet_of(2, settings) as (one, other),
        Native(one, "job:1") as native,
        Compat(one.compat("1")) as compat,
        Native(other, "job:1") as elsewhere,
    ):
        await native.synced()
        await elsewhere.synced()
        await compat.wait_for("current_state")
        began = time.monotonic()
        one.stop()
        bye = await native.wait_for("bye")
        assert 0 < bye["reconnect_seconds"] <= 3
        await until(lambda: native.closed)
        assert native.closed == 1012
        # No close frame: only after that do these browsers come back.
        assert await compat.end() == 1006
        await one.ended(5)
        assert time.monotonic() - began < 4

        native.site = other
        await native.open()
        await publisher.publish("job:1", 5)
        await native.has("job:1", 6)
        assert native.numbers("job:1") == [1, 2, 3, 4, 5]
        assert native.syncs[-1]["mode"] == "replay"
        assert elsewhere.closed is None
        # The seats of the other process were given back, not left to run out.
        more = [Native(other) for _ in range(8)]
        for client in more:
            await client.open()
            await client.wait_for("welcome")
        assert (await refused(other.native + f"?token={token()}"))[0] == 4429
        for client in more:
            await client.close()


async def test_a_connection_that_stalls_does_not_hold_up_the_stop(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with fleet_of(1, settings) as [server]:
        stalled = Native(server, "job:1", compression=None)
        await stalled.open()
        await stalled.synced()
        assert stalled.socket is not None
        stalled.socket.transport.pause_reading()
        for _ in range(100):
            publisher.emit("job:1", type="big", data={"text": "x" * 60_000})
            await publisher.flush()
        server.stop()
        await server.ended(8)
        stalled.socket.transport.abort()


@pytest.mark.every_row
async def test_a_deleted_job_is_gone_at_once_and_late_drafts_are_refused(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    async with (
        Native(site, "job:1") as native,
        Native(site, "user:7") as feed,
        Compat(site.compat("1")) as compat,
    ):
        await native.synced()
        await feed.synced()
        await compat.wait_for("current_state")
        assert await site.rt.delete("1") is True
        assert (await native.wait_for("gone"))["topic"] == "job:1"
        deleted = await compat.wait_for("job_deleted")
        assert deleted["data"]["status"] == "deleted"
        await feed.has("user:7", 1)
        [told] = feed.seen["user:7"]
        assert (told["type"], told["key"], told["state"]) == ("job_deleted", "1", None)

        receipt = await site.rt.publish("job:1", "step", state={"status": "running"}, owner="7")
        assert receipt.outcome is Outcome.CLOSED
        await native.subscribe("job:1")
        await native.wait_for("denied")
        assert native.closed is None
        assert native.numbers("job:1") == []
        assert await site.rt.delete("1") is False
    assert (await refused(site.compat("1") + f"?token={token()}"))[0] == 1008
    async with site.client() as http:
        assert (await http.get("/realtime/jobs/1")).status_code == 404


@pytest.mark.every_backend(shares_storage=True)
async def test_a_watcher_on_another_server_hears_of_a_deletion(
    settings: Settings, site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    async with fleet_of(1, settings) as [other], Native(other, "job:1") as client:
        await client.synced()
        await site.rt.delete("1")
        await client.wait_for("gone")


@pytest.mark.every_backend(shares_storage=True)
async def test_a_deletion_while_the_feed_was_down_is_told_when_it_is_back(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    port = urlsplit(settings.url).port
    async with Way(port) as way:
        url = settings.url.replace(f":{port}", f":{way.port}")
        # Nothing but the feed's coming back makes it look.
        through = settings.model_copy(update={"url": url, "tops_seconds": 3600.0})
        async with (
            site_of(through) as site,
            Native(site, "job:1") as native,
            Compat(site.compat("1")) as compat,
        ):
            await native.synced()
            await compat.wait_for("current_state")
            with way.closed():
                await publisher.rt.delete("1", owner="7")
            assert (await native.wait_for("gone"))["topic"] == "job:1"
            deleted = await compat.wait_for("job_deleted")
            assert deleted["data"]["status"] == "deleted"
            assert len(native.syncs) == len(compat.of("current_state")) == 1
            await until(lambda: site.rt.web.hub.topics == 0)
            assert native.closed is None
            assert compat.closed is None


class Archive:
    """A host that keeps what its jobs ended with."""

    @hookimpl
    def recall(self, topic: str) -> dict[str, dict[str, str]]:
        return {topic.partition(":")[2]: {"status": "completed", "message": "from the archive"}}

    @hookimpl
    def authorize(self, user: str, owner: str | None) -> bool | None:
        return True if owner is None else None


@pytest.mark.every_row
async def test_who_comes_to_a_deleted_job_is_told_so_if_the_host_lets_them_watch(
    settings: Settings,
) -> None:
    async with site_of(settings, plugins=[Archive()]) as site, site.client() as http:
        await site.rt.publish("job:1", "step", state={"status": "running"}, owner="7")
        async with Native(site, "job:1") as native:
            await native.synced()
            await site.rt.delete("1")
            await native.wait_for("gone")
            # Back, with a cursor.
            await native.subscribe("job:1")
            await native.wait_for("gone", 2)
            assert len(native.syncs) == 1
        async with Compat(site.compat("1")) as compat:
            deleted = await compat.wait_for("job_deleted")
            assert deleted["data"] == {"status": "deleted"}
            assert len(compat.messages) == 1
        assert (await http.get("/realtime/jobs/1")).status_code == 404
        await until(lambda: site.rt.web.hub.topics == 0)


@pytest.mark.every_backend(shares_storage=True)
async def test_after_the_grace_the_hosts_record_answers(
    settings: Settings,
) -> None:
    # Long enough for everyone to see the end first.
    settings = settings.model_copy(update={"grace_seconds": 1.5, "tops_seconds": 0.5})
    publisher = Publisher(settings)
    await publisher.publish("job:1", 2)
    async with site_of(settings, plugins=[Archive()]) as site, site.client() as http:
        async with (
            Native(site, "job:1") as native,
            Compat(site.compat("1")) as compat,
        ):
            await native.synced()
            await compat.wait_for("current_state")
            await publisher.end("job:1")
            await compat.wait_for("job_completed")
            await native.has("job:1", 3)
            late = await http.get("/realtime/jobs/1")
            assert late.json()["states"]["1"]["status"] == "completed"
            assert late.json()["offset"] == 3

            # Who watches is told by the record too, and not that the job never was.
            await native.wait_for("sync", 2)
            assert native.syncs[1]["reason"] == "recalled"
            assert native.views["job:1"].states["1"]["message"] == "from the archive"
            recalled = await compat.wait_for("current_state", 2)
            assert recalled["data"]["status"] == "completed"
        async with Native(site, "job:1") as later:
            await later.synced()
            assert later.syncs[0]["reason"] == "recalled"
        answer = (await http.get("/realtime/jobs/1")).json()
        assert (answer["cursor"], answer["states"]["1"]["status"]) == (None, "completed")
    publisher.close()


async def test_without_a_record_an_expired_log_leaves_a_compat_page_as_it_is(
    settings: Settings,
) -> None:
    settings = settings.model_copy(update={"grace_seconds": 1.0, "tops_seconds": 0.3})
    publisher = Publisher(settings)
    await publisher.publish("job:1", 2)
    async with (
        site_of(settings) as site,
        Native(site, "job:1") as native,
        Compat(site.compat("1")) as compat,
    ):
        await native.synced()
        await compat.wait_for("current_state")
        await publisher.end("job:1")
        await native.wait_for("sync", 2)
        await compat.send("ping")
        await compat.wait_for("pong")
    assert (native.syncs[1]["reason"], native.syncs[1]["cursor"]) == ("epoch", None)
    told = [message for message in compat.messages if "id" in message]
    assert told[-1]["type"] == "job_completed"
    publisher.close()


@pytest.mark.every_row
@pytest.mark.parametrize("again", [False, True])
async def test_unsubscribing_ends_the_events_and_gives_everything_back(
    site: Here, publisher: Publisher, again: bool
) -> None:
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    hub = site.rt.web.hub
    async with Native(site, "job:1", "job:2") as client:
        await client.synced()
        await client.send({"op": "unsubscribe", "topics": ["job:1", "job:3", 7]})
        if again:
            await client.send({"op": "subscribe", "topics": {"job:1": None}})
            await client.wait_for("sync", 3)
        else:
            await until(lambda: hub.topics == 1)
        await publisher.publish("job:1", 1)
        await publisher.publish("job:2", 1)
        await client.has("job:2", 2)
        if again:
            await client.has("job:1", 2)
        else:
            assert client.numbers("job:1") == []
    await until(lambda: hub.topics == 0 and not hub.connections)


@pytest.mark.every_row
async def test_coming_and_going_in_the_same_moment_leaves_nothing_behind(
    site: Here, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    hub = site.rt.web.hub
    frames = [
        json.dumps({"op": "subscribe", "topics": {"job:1": None}}),
        json.dumps({"op": "unsubscribe", "topics": ["job:1"]}),
    ]

    async def restless() -> None:
        client = Native(site)
        await client.open()
        for number in range(40):
            await client.send(frames[number % 2])
            await asyncio.sleep(0 if number % 3 else 0.002)
        await client.cut()

    await asyncio.gather(*(restless() for _ in range(5)))
    await until(lambda: hub.topics == 0 and not hub.connections)
    async with Native(site, "job:1") as client:
        await client.synced()
        await publisher.publish("job:1", 3)
        await client.has("job:1", 4)
    assert client.numbers("job:1") == [1, 2, 3]
