"""Server-sent events through an outage, for a slow reader, and at the end of a stream."""

from __future__ import annotations

import time
from typing import Any

import pytest
from clients import SseClient, bystander
from configuration import make_settings, token
from publisher import Publisher, one_draft
from waiting import is_blocked, until
from web_servers import InProcessServer, serve_realtime, server_processes

from semantik_realtime.config import Settings
from semantik_realtime.core.backpressure import Limits
from semantik_realtime.core.limits import SPARE_BYTES
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.testing.servers import ROWS, Server

JOB = "/realtime/jobs/1/events"


def bearer(**options: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(**options)}"}


@pytest.mark.every_backend(shares_storage=True)
async def test_an_outage_is_reported_shows_provisional_states_and_is_caught_up_with(
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
        server.url, backend=ROWS[row].backend, timeout_seconds=1.0, tops_seconds=1.0
    )
    publisher = Publisher(settings)
    await publisher.publish("job:1", 3)
    await publisher.publish("job:2", 3)
    async with (
        serve_realtime(settings, plugins=[Record()]) as web_server,
        SseClient(web_server, "job:1", path=JOB) as client,
    ):
        await client.wait_synced()
        place = client.last_id
        server.kill()
        await client.wait_for("degraded")
        shown = await client.wait_for("provisional")
        assert shown["states"]["1"]["progress"]["current"] == 5
        # A provisional state is not of the log, so it does not move the cursor.
        assert client.last_id == place
        # A new client is not refused for good while its right to watch is unknown.
        async with SseClient(web_server, "job:1") as late, SseClient(web_server, "job:2") as unsure:
            await late.wait_for("provisional")
            await unsure.wait_for("degraded")
            assert not unsure.ops("provisional")
            server.start()
            for one in (client, late):
                await one.wait_for("restored", 1, 20)
            await late.wait_synced()
            await unsure.wait_synced()
            await publisher.publish("job:1", 3)
            await client.wait_for_offset("job:1", 6)
            await late.wait_for_offset("job:1", 6)
        assert client.views["job:1"].states["1"]["progress"]["current"] == 6
        assert client.connections == 1
        assert not client.bad_batches
    publisher.close()


FILLING = "x" * 50_000


async def fill(publisher: Publisher, number: int) -> None:
    """Publish ``number`` log lines of 50 kB, without state, which conflation may leave out."""
    for start in range(number):
        publisher.rt.emitter.emit(one_draft("job:1", "log", key="1", data={"text": FILLING}))
        if start % 5 == 4:
            await publisher.flush()
    await publisher.flush()


async def test_a_slow_client_is_evicted_delays_no_other_and_resumes_by_its_id(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with (
        bystander(web_server, publisher),
        SseClient(web_server, "job:1") as other,
        SseClient(web_server, "job:1") as slow,
    ):
        await other.wait_synced()
        await slow.wait_synced()
        slow.may_read.clear()
        await fill(publisher, 200)
        await publisher.publish("job:1", 100)
        await other.wait_for_offset("job:1", 301)
        # The buffer of a stalled client has a bound.
        kept = web_server.rt.web.hub._channels["job:1"].buffer_bytes
        assert kept <= SPARE_BYTES + 5 * len(FILLING)
        slow.may_read.set()
        bye = await slow.wait_ended()
        assert (bye["op"], bye["code"]) == ("bye", 4413)

        # The client catches up from the log.
        await slow.abort()
        await slow.open()
        await slow.wait_for_offset("job:1", 301)
        assert slow.views["job:1"].states == other.views["job:1"].states
        assert not slow.bad_batches
        assert not other.bad_batches


async def test_a_client_that_reads_nothing_for_too_long_is_evicted(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with serve_realtime(settings) as web_server, bystander(web_server, publisher):
        hub = web_server.rt.web.hub
        hub.limits = Limits(stall_seconds=1.0)
        before = set(hub.connections)
        async with SseClient(web_server, "job:1") as client:
            await client.wait_synced()
            [connection] = hub.connections - before
            client.may_read.clear()
            while not await is_blocked(connection):
                await fill(publisher, 5)
            await until(lambda: connection not in hub.connections, 10)
            assert connection.ended is not None
            assert connection.ended.code == 4413
            await until(lambda: hub.topics == 1)
            client.may_read.set()
            await client.wait_ended()


# The end of a stream.


@pytest.mark.every_backend(shares_storage=True)
async def test_a_server_that_gets_sigterm_sends_bye_and_ends_promptly(
    settings: Settings, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with server_processes(2, settings) as (one, other), SseClient(one, "job:1") as client:
        await client.wait_synced()
        began = time.monotonic()
        one.stop()
        bye = await client.wait_ended()
        assert (bye["op"], bye["code"]) == ("bye", 1012)
        assert client.retries[-1] == round(bye["reconnect_seconds"] * 1000)
        assert client.is_complete
        await one.wait_ended(5)
        # Less than uvicorn's graceful timeout of 3 s, so no request had to be cancelled.
        assert time.monotonic() - began < 2.5
        await publisher.publish("job:1", 5)
        await client.abort()
        client.web_server = other
        await client.open()
        await client.wait_for_offset("job:1", 6)
        assert client.numbers("job:1") == [1, 2, 3, 4, 5]
        assert client.syncs[-1]["mode"] == "replay"


async def test_the_stream_ends_when_the_token_expires(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 1)
    async with SseClient(web_server, "job:1", headers=bearer(seconds=2)) as client:
        await client.wait_synced()
        bye = await client.wait_ended()
        assert (bye["op"], bye["code"]) == ("bye", 4402)
        assert client.is_complete
        await client.abort()
        await client.open()
        assert client.status == 401


@pytest.mark.every_row
async def test_the_stream_ends_when_no_topic_is_left(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    await publisher.publish("job:2", 3)
    async with (
        SseClient(web_server, "job:1", path=JOB) as only,
        SseClient(web_server, "job:1", "job:2") as both,
    ):
        await only.wait_synced()
        await both.wait_synced()
        assert await web_server.rt.delete("1") is True
        bye = await only.wait_ended()
        assert (bye["op"], bye["code"]) == ("bye", 4403)
        assert only.ops("gone") == [{"op": "gone", "topic": "job:1"}]
        assert only.last_id == ""
        await only.abort()
        await only.open()
        assert only.status == 404

        await both.wait_for("gone")
        await publisher.publish("job:2", 1)
        await both.wait_for_offset("job:2", 4)
        assert both.last_id == f",{both.views['job:2'].cursor}"
        await web_server.rt.delete("2")
        assert (await both.wait_ended())["code"] == 4403
