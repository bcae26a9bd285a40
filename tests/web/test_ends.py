"""Draining, deletion, expiry and unsubscribing: how connections and topics end for clients."""

from __future__ import annotations

import asyncio
import json
import time
from urllib.parse import urlsplit

import pytest
from clients import CompatClient, NativeClient, refusal
from configuration import token
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime, server_processes

from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.testing.tcp_proxy import TcpProxy


@pytest.mark.every_backend(shares_storage=True)
async def test_a_server_that_gets_sigterm_drains_its_connections_and_ends_promptly(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        server_processes(2, settings) as (one, other),
        NativeClient(one, "job:1") as native,
        CompatClient(one.compat_url("1")) as compat,
        NativeClient(other, "job:1") as elsewhere,
    ):
        await native.wait_synced()
        await elsewhere.wait_synced()
        await compat.wait_for("current_state")
        began = time.monotonic()
        one.stop()
        bye = await native.wait_for("bye")
        assert 0 < bye["reconnect_seconds"] <= 3
        await until(lambda: native.closed)
        assert native.closed == 1012
        # No close frame, because these browsers reconnect only after that.
        assert await compat.wait_closed() == 1006
        await one.wait_ended(5)
        assert time.monotonic() - began < 4

        native.web_server = other
        await native.open()
        await publisher.publish("job:1", 5)
        await native.wait_for_offset("job:1", 6)
        assert native.numbers("job:1") == [1, 2, 3, 4, 5]
        assert native.syncs[-1]["mode"] == "replay"
        assert elsewhere.closed is None
        # The stopped process has released its connections' leases before they expired.
        more = [NativeClient(other) for _ in range(8)]
        for client in more:
            await client.open()
            await client.wait_for("welcome")
        assert (await refusal(other.native_url + f"?token={token()}"))[0] == 4429
        for client in more:
            await client.close()


async def test_a_stalled_connection_does_not_delay_the_stop(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with server_processes(1, settings) as [server]:
        stalled = NativeClient(server, "job:1", compression=None)
        await stalled.open()
        await stalled.wait_synced()
        assert stalled.socket is not None
        stalled.socket.transport.pause_reading()
        for _ in range(100):
            publisher.emit("job:1", type="big", data={"text": "x" * 60_000})
            await publisher.flush()
        server.stop()
        await server.wait_ended(8)
        stalled.socket.transport.abort()


@pytest.mark.every_row
async def test_a_deleted_job_is_gone_at_once_and_late_drafts_are_refused(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    async with (
        NativeClient(web_server, "job:1") as native,
        NativeClient(web_server, "user:7") as feed,
        CompatClient(web_server.compat_url("1")) as compat,
    ):
        await native.wait_synced()
        await feed.wait_synced()
        await compat.wait_for("current_state")
        assert await web_server.rt.delete("1") is True
        assert (await native.wait_for("gone"))["topic"] == "job:1"
        deleted = await compat.wait_for("job_deleted")
        assert deleted["data"]["status"] == "deleted"
        await feed.wait_for_offset("user:7", 1)
        [event] = feed.applied["user:7"]
        assert (event["type"], event["key"], event["state"]) == ("job_deleted", "1", None)

        receipt = await web_server.rt.publish(
            "job:1", "step", state={"status": "running"}, owner="7"
        )
        assert receipt.outcome is Outcome.CLOSED
        await native.subscribe("job:1")
        await native.wait_for("denied")
        assert native.closed is None
        assert native.numbers("job:1") == []
        assert await web_server.rt.delete("1") is False
    assert (await refusal(web_server.compat_url("1") + f"?token={token()}"))[0] == 1008
    async with web_server.http_client() as http:
        assert (await http.get("/realtime/jobs/1")).status_code == 404


@pytest.mark.every_backend(shares_storage=True)
async def test_a_deletion_reaches_clients_of_another_server(
    settings: Settings, web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    async with server_processes(1, settings) as [other], NativeClient(other, "job:1") as client:
        await client.wait_synced()
        await web_server.rt.delete("1")
        await client.wait_for("gone")


@pytest.mark.every_backend(shares_storage=True)
async def test_a_deletion_during_an_interruption_is_reported_after_it(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    port = urlsplit(settings.url).port
    async with TcpProxy(port) as proxy:
        url = settings.url.replace(f":{port}", f":{proxy.port}")
        # No look at the tops finds the deletion, only the return of the subscription.
        through = settings.model_copy(update={"url": url, "tops_seconds": 3600.0})
        async with (
            serve_realtime(through) as web_server,
            NativeClient(web_server, "job:1") as native,
            CompatClient(web_server.compat_url("1")) as compat,
        ):
            await native.wait_synced()
            await compat.wait_for("current_state")
            with proxy.refusing():
                await publisher.rt.delete("1", owner="7")
            assert (await native.wait_for("gone"))["topic"] == "job:1"
            deleted = await compat.wait_for("job_deleted")
            assert deleted["data"]["status"] == "deleted"
            assert len(native.syncs) == len(compat.of_type("current_state")) == 1
            await until(lambda: web_server.rt.web.hub.topics == 0)
            assert native.closed is None
            assert compat.closed is None


class Archive:
    """A plugin with the host's record of ended jobs."""

    @hookimpl
    def recall(self, topic: str) -> dict[str, dict[str, str]]:
        return {topic.partition(":")[2]: {"status": "completed", "message": "from the archive"}}

    @hookimpl
    def authorize(self, user: str, owner: str | None) -> bool | None:
        return True if owner is None else None


@pytest.mark.every_row
async def test_a_late_subscription_to_a_deleted_job_gets_gone_if_the_host_allows_it(
    settings: Settings,
) -> None:
    async with (
        serve_realtime(settings, plugins=[Archive()]) as web_server,
        web_server.http_client() as http,
    ):
        await web_server.rt.publish("job:1", "step", state={"status": "running"}, owner="7")
        async with NativeClient(web_server, "job:1") as native:
            await native.wait_synced()
            await web_server.rt.delete("1")
            await native.wait_for("gone")
            # Subscribe again, with a cursor.
            await native.subscribe("job:1")
            await native.wait_for("gone", 2)
            assert len(native.syncs) == 1
        async with CompatClient(web_server.compat_url("1")) as compat:
            deleted = await compat.wait_for("job_deleted")
            assert deleted["data"] == {"status": "deleted"}
            assert len(compat.messages) == 1
        assert (await http.get("/realtime/jobs/1")).status_code == 404
        await until(lambda: web_server.rt.web.hub.topics == 0)


@pytest.mark.every_backend(shares_storage=True)
async def test_after_the_grace_period_the_hosts_record_answers(
    settings: Settings,
) -> None:
    # Long enough for every client to get the terminal event first.
    settings = settings.model_copy(update={"grace_seconds": 1.5, "tops_seconds": 0.5})
    publisher = Publisher(settings)
    await publisher.publish("job:1", 2)
    async with (
        serve_realtime(settings, plugins=[Archive()]) as web_server,
        web_server.http_client() as http,
    ):
        async with (
            NativeClient(web_server, "job:1") as native,
            CompatClient(web_server.compat_url("1")) as compat,
        ):
            await native.wait_synced()
            await compat.wait_for("current_state")
            await publisher.end("job:1")
            await compat.wait_for("job_completed")
            await native.wait_for_offset("job:1", 3)
            late = await http.get("/realtime/jobs/1")
            assert late.json()["states"]["1"]["status"] == "completed"
            assert late.json()["offset"] == 3

            # An open connection gets the record too, and not an empty snapshot.
            await native.wait_for("sync", 2)
            assert native.syncs[1]["reason"] == "recalled"
            assert native.views["job:1"].states["1"]["message"] == "from the archive"
            # A page of the compatibility wire has the end already.
            await compat.send("ping")
            await compat.wait_for("pong")
            assert [message["type"] for message in compat.messages[-2:]] == [
                "job_completed",
                "pong",
            ]
        async with NativeClient(web_server, "job:1") as later:
            await later.wait_synced()
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
        serve_realtime(settings) as web_server,
        NativeClient(web_server, "job:1") as native,
        CompatClient(web_server.compat_url("1")) as compat,
    ):
        await native.wait_synced()
        await compat.wait_for("current_state")
        await publisher.end("job:1")
        await native.wait_for("sync", 2)
        await compat.send("ping")
        await compat.wait_for("pong")
    assert (native.syncs[1]["reason"], native.syncs[1]["cursor"]) == ("epoch", None)
    events = [message for message in compat.messages if "id" in message]
    assert events[-1]["type"] == "job_completed"
    publisher.close()


@pytest.mark.every_row
@pytest.mark.parametrize("again", [False, True])
async def test_unsubscribing_ends_the_events_and_frees_the_channel(
    web_server: InProcessServer, publisher: Publisher, again: bool
) -> None:
    await publisher.publish("job:1", 1)
    await publisher.publish("job:2", 1)
    hub = web_server.rt.web.hub
    async with NativeClient(web_server, "job:1", "job:2") as client:
        await client.wait_synced()
        await client.send({"op": "unsubscribe", "topics": ["job:1", "job:3", 7]})
        if again:
            await client.send({"op": "subscribe", "topics": {"job:1": None}})
            await client.wait_for("sync", 3)
        else:
            await until(lambda: hub.topics == 1)
        await publisher.publish("job:1", 1)
        await publisher.publish("job:2", 1)
        await client.wait_for_offset("job:2", 2)
        if again:
            await client.wait_for_offset("job:1", 2)
        else:
            assert client.numbers("job:1") == []
    await until(lambda: hub.topics == 0 and not hub.connections)


@pytest.mark.every_row
async def test_rapid_subscribing_and_unsubscribing_leaves_no_channel_behind(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    hub = web_server.rt.web.hub
    frames = [
        json.dumps({"op": "subscribe", "topics": {"job:1": None}}),
        json.dumps({"op": "unsubscribe", "topics": ["job:1"]}),
    ]

    async def subscribe_and_unsubscribe() -> None:
        client = NativeClient(web_server)
        await client.open()
        for number in range(40):
            await client.send(frames[number % 2])
            await asyncio.sleep(0 if number % 3 else 0.002)
        await client.abort()

    await asyncio.gather(*(subscribe_and_unsubscribe() for _ in range(5)))
    await until(lambda: hub.topics == 0 and not hub.connections)
    async with NativeClient(web_server, "job:1") as client:
        await client.wait_synced()
        await publisher.publish("job:1", 3)
        await client.wait_for_offset("job:1", 4)
    assert client.numbers("job:1") == [1, 2, 3]
