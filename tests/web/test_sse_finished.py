"""The stream of finished jobs ends, and a browser that reconnects is told that it need not."""

from __future__ import annotations

import time
from typing import Any

import pytest
from clients import SseClient
from publisher import Publisher
from waiting import until
from web_servers import InProcessServer, serve_realtime

from semantik_realtime.config import Settings
from semantik_realtime.hookspecs import hookimpl
from semantik_realtime.web.endpoints import sse

JOB = "/realtime/jobs/1/events"


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LINGER_SECONDS", 1.0)


async def again(client: SseClient) -> int:
    """Reconnect as an EventSource does; return the status."""
    await client.abort()
    await client.open()
    return client.status


@pytest.mark.every_row
async def test_the_stream_of_a_job_ends_soon_after_its_end_and_is_not_begun_again(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    async with SseClient(web_server, "job:1", path=JOB) as client:
        await client.wait_synced()
        await publisher.end("job:1")
        await client.wait_for_offset("job:1", 4)
        assert await client.wait_ended() == {"op": "bye", "code": 1000}
        assert client.is_complete
        assert client.views["job:1"].states["1"]["status"] == "completed"
        assert client.last_id == f"{client.views['job:1'].cursor},end"
        await until(lambda: not web_server.rt.web.hub.connections)
        # The HTML standard: after 204 an EventSource does not reconnect.
        assert await again(client) == 204
        assert client.answer is not None
        assert client.answer.headers["cache-control"].startswith("no-store")
        # So does a client that lost the connection just after the end.
        client.last_id = str(client.views["job:1"].cursor)
        assert await again(client) == 204
        assert not web_server.rt.web.hub.connections


async def test_a_stream_of_a_job_that_has_ended_has_its_state_and_ends_at_once(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    await publisher.end("job:1", "job_failed")
    began = time.monotonic()
    async with SseClient(web_server, "job:1", path=JOB, history=2) as client:
        assert (await client.wait_ended())["code"] == 1000
        assert time.monotonic() - began < 10
        [sync] = client.syncs
        assert sync["states"]["1"]["status"] == "failed"
        assert [event["type"] for event in sync["events"]] == ["step", "job_failed"]
    # A page that begins with a cursor gets an answer, which a browser's reconnect does not.
    cursor = {"cursor": sync["cursor"]}
    async with SseClient(web_server, "job:1", path=JOB, query=cursor) as client:
        assert client.status == 200
        assert (await client.wait_ended())["code"] == 1000
        assert client.syncs[0]["mode"] == "replay"


async def test_twelve_streams_of_one_finished_job_are_all_served(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.end("job:1")
    clients = [SseClient(web_server, "job:1", path=JOB) for _ in range(12)]
    for client in clients:
        await client.open()
        await client.wait_ended()
    assert [client.status for client in clients] == [200] * 12
    for client in clients:
        await client.close()


async def test_a_client_that_missed_the_end_gets_it_by_its_last_id(
    web_server: InProcessServer, publisher: Publisher
) -> None:
    await publisher.publish("job:1", 3)
    async with SseClient(web_server, "job:1", path=JOB) as client:
        await client.wait_synced()
        await client.abort()
        await publisher.publish("job:1", 2)
        await publisher.end("job:1")
        assert await again(client) == 200
        assert (await client.wait_ended())["code"] == 1000
        assert client.syncs[-1]["mode"] == "replay"
        assert client.views["job:1"].states["1"]["status"] == "completed"
        assert not client.bad_batches
        assert await again(client) == 204


async def attempt(publisher: Publisher, number: int) -> None:
    state = {"status": "running", "attempt": number}
    publisher.emit("job:1", type="job_started", job="1", attempt=number, state=state)
    await publisher.flush()


@pytest.mark.every_backend(shares_storage=False)
async def test_a_new_attempt_is_streamed_whether_it_begins_before_the_stream_ends_or_later(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "LINGER_SECONDS", 3.0)
    await attempt(publisher, 1)
    async with SseClient(web_server, "job:1", path=JOB) as client:
        await client.wait_synced()
        await publisher.end("job:1", "job_lost")
        await client.wait_for_offset("job:1", 2)
        await attempt(publisher, 2)
        await client.wait_for_offset("job:1", 3)
        await publisher.end("job:1")
        assert (await client.wait_ended())["code"] == 1000
        assert client.connections == 1
        assert client.views["job:1"].offset == 4

        await attempt(publisher, 3)
        assert await again(client) == 200
        await client.wait_for_offset("job:1", 5)
        assert client.syncs[-1]["mode"] == "replay"
        await publisher.end("job:1")
        assert (await client.wait_ended())["code"] == 1000
        assert await again(client) == 204


async def test_a_stream_of_several_jobs_ends_with_the_last_of_them(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "LINGER_SECONDS", 0.2)
    for topic in ("job:1", "job:2"):
        await publisher.publish(topic, 1)
    # The fourth is another user's, the third is deleted on the way.
    await publisher.publish("job:3", 1)
    await publisher.publish("job:4", 1, owner="8")
    async with SseClient(web_server, "job:1", "job:2", "job:3", "job:4") as client:
        await client.wait_synced("job:1", "job:2", "job:3")
        await publisher.end("job:1")
        await client.wait_for_offset("job:1", 2)
        await web_server.rt.delete("3")
        await client.wait_for("gone")
        await publisher.publish("job:2", 5)
        await client.wait_for_offset("job:2", 6)
        await publisher.end("job:2")
        assert (await client.wait_ended())["code"] == 1000
        cursors = [client.views[topic].cursor for topic in ("job:1", "job:2")]
        assert client.last_id == f"{cursors[0]},{cursors[1]},,,end"
        assert await again(client) == 204


async def test_a_child_that_goes_on_keeps_the_stream_of_its_parent(
    web_server: InProcessServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "LINGER_SECONDS", 0.2)
    publisher.emit("job:1", key="1-1", state={"status": "queued"})
    publisher.emit("job:1", key="page", state={"status": "open"})
    publisher.emit("job:1", key="odd", state={"status": [7]})
    await publisher.end("job:1")
    async with SseClient(web_server, "job:1", path=JOB) as client:
        await client.wait_synced()
        publisher.emit("job:1", key="1-1", state={"status": "running"})
        await publisher.flush()
        await client.wait_for_offset("job:1", 5)
        publisher.emit("job:1", key="1-1", state=None)
        await publisher.flush()
        assert (await client.wait_ended())["code"] == 1000
        assert client.views["job:1"].offset == 6


async def test_a_feed_never_ends(web_server: InProcessServer, publisher: Publisher) -> None:
    await publisher.end("job:1")
    publisher.emit("user:7", key="7", state={"status": "completed"})
    await publisher.flush()
    async with SseClient(web_server, "user:7", "job:1") as client:
        await client.wait_synced()
        await publisher.publish("user:7", 1)
        await client.wait_for_offset("user:7", 2)
        place = client.last_id
        assert await again(client) == 200
        assert client.last_id == place
        assert not client.ops("bye")


async def test_the_end_in_the_hosts_record_is_sent_once(
    settings: Settings, publisher: Publisher
) -> None:
    class Record:
        status = "completed"

        @hookimpl
        def recall(self, topic: str) -> dict[str, Any]:
            return {"1": {"status": self.status}}

        @hookimpl
        def authorize(self) -> bool:
            return True

    async with (
        serve_realtime(settings, plugins=[Record()]) as web,
        SseClient(web, "job:1", path=JOB) as client,
    ):
        assert (await client.wait_ended())["code"] == 1000
        assert client.syncs[0]["reason"] == "recalled"
        # Without the mark there would be no id, and so a new stream every second.
        assert client.last_id == ",end"
        assert await again(client) == 204
        # A log that begins meanwhile is streamed.
        await publisher.publish("job:1", 1)
        assert await again(client) == 200
        await client.wait_for_offset("job:1", 1)
